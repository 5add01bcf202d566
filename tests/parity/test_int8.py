"""Products with weights in 8 bits: the codes, the twin, the Triton kernels against it, and the kernel for CPUs."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from kvlite_kernels import int8
from kvlite_kernels.int8 import EightBit, HostProducts
from tests.parity.compare import assert_parity
from tests.parity.poison import poison

__all__ = ["poison"]
needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="the kernels run here in Triton's interpreter: triton and TRITON_INTERPRET=1",
)
SHAPES = [(1, 32), (40, 192), (63, 96), (33, 448), (16, 1088), (80, 50)]


def coded(outputs: int, channels: int) -> EightBit:
    generator = torch.Generator().manual_seed(outputs + channels)
    codes = torch.randint(-127, 128, (outputs, channels), dtype=torch.int8, generator=generator)
    return EightBit(codes, torch.rand(outputs, generator=generator) + 0.1)


def rows_of(count: int, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_are_the_nearest_and_the_largest_weight_is_exact(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "WIDENED_ELEMENTS", 200)  # more than one tile
    weights = torch.randn(40, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights[3] = 0.0
    found = int8.quantise(weights)
    again = found.codes.float() * found.scale[:, None]
    assert ((again - weights.float()).abs() <= found.scale[:, None] * 0.5001).all()
    assert (found.codes.abs().amax(1)[[0, 1, 2, 4]] == 127).all()
    assert not again[3].any()


def test_a_product_is_of_the_codes_times_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "WIDENED_ELEMENTS", 1000)
    weight, x = coded(40, 192), rows_of(5, 192)
    expected = x @ (weight.codes.float() * weight.scale[:, None]).T
    assert_parity("out", int8.multiply(x, weight), expected, 1e-5)


@needs_interpreter
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("count", [1, 3, 17])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_twin(shape: tuple[int, int], count: int) -> None:
    weight, x = coded(*shape), rows_of(count, shape[1])
    assert_parity("out", on_triton()(x, weight), int8.multiply(x, weight), 1e-5)


@needs_interpreter
@pytest.mark.parametrize(
    ("dtype", "count"), [(torch.float16, 1), (torch.bfloat16, 1), (torch.float16, 5)], ids=["half", "bf16", "half rows"]
)
def test_products_in_half_precision_are_those_of_the_twin(dtype: torch.dtype, count: int) -> None:
    weight, x = coded(40, 448), rows_of(count, 448, dtype)
    assert_parity("out", on_triton()(x, weight), int8.multiply(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 4])
def test_the_kernel_for_cpus_rounds_to_bfloat16_and_no_more(dtype: torch.dtype, count: int) -> None:
    weight, x = coded(64, 160), rows_of(count, 160, dtype)
    found, expected = HostProducts()(x, weight), int8.multiply(x, weight)
    assert found.dtype is dtype
    assert (found.float() - expected.float()).norm() < 0.01 * expected.float().norm()


def on_triton() -> int8.CodedProducts:
    from kvlite_kernels.triton_set.products import TritonCodedProducts
    from kvlite_kernels.triton_set.tiles import INTERPRETER

    return TritonCodedProducts(INTERPRETER)
