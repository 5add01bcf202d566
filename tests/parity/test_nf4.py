"""Products with 4-bit weights: the reference against bitsandbytes' own numbers, and the Triton kernels against it."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from kvlite_kernels import nf4
from kvlite_kernels.fused_ops import FusedOps
from kvlite_kernels.nf4 import FourBit, dequantise
from tests.parity.compare import assert_parity
from tests.parity.poison import poison

__all__ = ["poison"]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="the kernels run here in Triton's interpreter: triton and TRITON_INTERPRET=1",
)
SHAPES = [(1, 32, 32), (40, 192, 64), (63, 96, 32), (33, 448, 64), (16, 1088, 64), (80, 64, 128)]
"""Outputs, channels and block: bytes of a row that are no whole tile, one output, a block of two rows."""


def packed(outputs: int, channels: int, block: int = 64) -> FourBit:
    """Random codes and scales, in a code book whose values all differ."""
    generator = torch.Generator().manual_seed(outputs + channels)
    codes = torch.randint(0, 256, (outputs, channels // 2), dtype=torch.uint8, generator=generator)
    absmax = torch.rand(outputs * channels // block, generator=generator) + 0.1
    return FourBit(codes, absmax, torch.linspace(-1.0, 1.0, 16) ** 3, block)


def rows_of(count: int, channels: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_weight_is_the_code_of_its_half_byte_times_the_scale_of_its_block(shape: tuple[int, int, int]) -> None:
    weight = packed(*shape)
    found, codes, at = dequantise(weight), weight.packed.flatten().tolist(), 0
    for n in range(shape[0]):
        for k in range(shape[1]):
            half = codes[at // 2] >> 4 if at % 2 == 0 else codes[at // 2] & 15
            assert found[n, k] == weight.code[half] * weight.absmax[at // weight.block]
            at += 1


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # bitsandbytes and torch's own
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_weights_are_those_that_bitsandbytes_unpacks(kind: str, nested: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, quantize_4bit

    weights = torch.randn(40, 192, generator=torch.Generator().manual_seed(1))
    found, state = quantize_4bit(weights, blocksize=64, quant_type=kind, compress_statistics=nested)
    absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
    ours = dequantise(FourBit(found.view(40, 96), absmax, state.code, state.blocksize))
    assert torch.equal(ours, dequantize_4bit(found, state))
    assert (ours - weights).abs().mean() < 0.15


@needs_interpreter
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("has_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("processors", [1, 64], ids=["whole", "parts"])
@pytest.mark.parametrize("count", [1, 3, 17])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_reference(
    shape: tuple[int, int, int], count: int, processors: int, has_bias: bool
) -> None:
    ops = on(processors)
    weight = packed(*shape)
    x = rows_of(count, shape[1], torch.float32)
    bias = torch.linspace(-3.0, 3.0, shape[0]) if has_bias else None
    assert_parity("out", ops.multiply_four_bit(x, weight, bias), nf4.multiply(x, weight, bias), 1e-5)


@needs_interpreter
@pytest.mark.parametrize(
    ("dtype", "count"), [(torch.float16, 1), (torch.bfloat16, 1), (torch.float16, 5)], ids=["half", "bf16", "half rows"]
)
def test_products_in_half_precision_are_those_of_the_reference(dtype: torch.dtype, count: int) -> None:
    weight, x = packed(40, 448), rows_of(count, 448, dtype)
    bias = torch.linspace(-3.0, 3.0, 40).to(dtype)
    assert_parity("out", on(1).multiply_four_bit(x, weight, bias), nf4.multiply(x, weight, bias))


@needs_interpreter
def test_rows_that_stand_apart_in_memory_are_multiplied_as_they_are() -> None:
    weight = packed(40, 192)
    x = rows_of(6, 192, torch.float32)
    assert_parity("out", on(1).multiply_four_bit(x[::2], weight, None), nf4.multiply(x[::2], weight, None), 1e-5)


def test_only_weights_whose_threads_stay_in_one_block_and_row_are_served() -> None:
    assert nf4.is_served((63, 96), 32) and nf4.is_served((2, 64), 128)
    assert not nf4.is_served((64, 48), 64)  # a thread's channels in two rows
    assert not nf4.is_served((64, 64), 16)  # and in two blocks
    assert not nf4.is_served((1, 96), 64)  # the last block is not whole
    assert not nf4.is_served((64,), 64)


def test_weights_one_after_another_are_those_of_one_product() -> None:
    first, second = packed(40, 192), packed(7, 192)
    assert nf4.can_join([first.shape, second.shape], 64)
    joined = FourBit(
        torch.cat([first.packed, second.packed]), torch.cat([first.absmax, second.absmax]), first.code, first.block
    )
    assert torch.equal(dequantise(joined), torch.cat([dequantise(first), dequantise(second)]))
    assert not nf4.can_join([(1, 64), (7, 64)], 128)  # a block in both


def on(processors: int) -> FusedOps:
    """The kernels in the interpreter, for a device of so many multiprocessors."""
    from kvlite_kernels.triton_set.fused_ops import TritonOps
    from kvlite_kernels.triton_set.tiles import Processor

    return TritonOps(Processor(0, processors))
