"""Products with weights in GGUF blocks: the Triton kernels against the reference, which test_gguf_blocks.py checks."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from kvlite_kernels.blocks import SIZES, Blocks, multiply, multiply_unpacked
from kvlite_kernels.fused_ops import FusedOps
from tests.gguf.gguf_file import random_blocks
from tests.matrix import but_few
from tests.parity.compare import assert_parity
from tests.parity.poison import poison

__all__ = ["poison"]
needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="the kernels run here in Triton's interpreter: triton and TRITON_INTERPRET=1",
)
CASES = [
    (kind, rows, processors, has_bias)
    for kind in SIZES
    for rows in (1, 5, 17)
    for processors in (1, 64)
    for has_bias in (False, True)
]
FEW = [(kind, rows, 64, True) for kind in SIZES for rows in (1, 5)]


def weights(kind: str, outputs: int = 19, channels: int = 768) -> Blocks:
    return Blocks(torch.from_numpy(random_blocks(kind, outputs, channels)), kind)


def rows_of(count: int, channels: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(count)).to(dtype)


def on(processors: int) -> FusedOps:
    """The kernels in the interpreter, for a device of so many multiprocessors."""
    from kvlite_kernels.triton_set.fused_ops import TritonOps
    from kvlite_kernels.triton_set.tiles import Processor

    return TritonOps(Processor(0, processors))


@needs_interpreter
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(("kind", "rows", "processors", "has_bias"), but_few(CASES, *FEW))
def test_products_are_those_of_the_reference(kind: str, rows: int, processors: int, has_bias: bool) -> None:
    weight, x = weights(kind), rows_of(rows, 768, torch.float32)
    bias = torch.linspace(-3.0, 3.0, 19) if has_bias else None
    assert_parity("out", on(processors).multiply_blocks(x, weight, bias), multiply(x, weight, bias), 1e-5)


@needs_interpreter
@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float16), (1, torch.bfloat16), (3, torch.float16)], ids=str)
def test_products_in_half_precision_are_those_of_the_reference(rows: int, dtype: torch.dtype) -> None:
    weight, x = weights("Q4_K"), rows_of(rows, 768, dtype)
    bias = torch.linspace(-3.0, 3.0, 19).to(dtype)
    assert_parity("out", on(1).multiply_blocks(x, weight, bias), multiply(x, weight, bias))


@needs_interpreter
def test_rows_of_one_block_and_rows_that_stand_apart() -> None:
    weight, x = weights("Q8_0", 70, 32), rows_of(6, 32, torch.float32)
    assert_parity("out", on(64).multiply_blocks(x[::2], weight, None), multiply(x[::2], weight, None), 1e-5)


@pytest.mark.parametrize("kind", ["Q4_1", "Q6_K"])
def test_more_rows_are_multiplied_with_tiles_that_are_unpacked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvlite_kernels.blocks._TILE", 768 * 4)
    weight, x = weights(kind), rows_of(40, 768, torch.float32)
    bias = torch.linspace(-3.0, 3.0, 19)
    assert_parity("out", multiply_unpacked(x, weight, bias), multiply(x, weight, bias), 1e-5)
