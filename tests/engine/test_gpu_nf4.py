"""On a GPU: the kernels for 4-bit weights against the reference, in models' shapes, and inside a captured graph."""

from __future__ import annotations

import pytest
import torch

from kvlite_kernels import nf4
from kvlite_kernels.choice import choose_ops
from kvlite_kernels.nf4 import FourBit
from tests.parity.compare import assert_parity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(896, 896), (1152, 896), (896, 4864), (4096, 4096), (4096, 11008), (28672, 4096), (33, 96)]


def packed(outputs: int, channels: int) -> FourBit:
    generator = torch.Generator("cuda").manual_seed(outputs)
    codes = torch.randint(0, 256, (outputs, channels // 2), dtype=torch.uint8, generator=generator, device="cuda")
    absmax = torch.rand(outputs * channels // 32, generator=generator, device="cuda") + 0.1
    return FourBit(codes, absmax, torch.linspace(-1.0, 1.0, 16, device="cuda") ** 3, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_reference(shape: tuple[int, int], dtype: torch.dtype) -> None:
    ops = choose_ops("triton", torch.device("cuda"))
    if ops.most_four_bit_rows(dtype) == 0:
        pytest.skip(f"this GPU has no kernels for {dtype}")
    weight, bias = packed(*shape), torch.linspace(-1.0, 1.0, shape[0], device="cuda", dtype=dtype)
    for rows in range(1, ops.most_four_bit_rows(dtype) + 1):
        x = torch.randn(rows, shape[1], device="cuda", dtype=dtype)
        assert_parity(f"{rows} rows", ops.multiply_four_bit(x, weight, bias), nf4.multiply(x, weight, bias))


def test_a_captured_product_sees_new_rows() -> None:
    ops = choose_ops("triton", torch.device("cuda"))
    weight, x = packed(896, 4864), torch.zeros(1, 4864, device="cuda", dtype=torch.float16)
    ops.multiply_four_bit(x, weight, None)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.multiply_four_bit(x, weight, None)
    x.normal_()
    graph.replay()
    assert_parity("out", out, nf4.multiply(x, weight, None))
