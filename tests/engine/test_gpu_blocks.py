"""On a GPU: the kernels for GGUF blocks against the reference, in models' shapes, and inside a captured graph."""

from __future__ import annotations

import pytest
import torch

from kvlite_kernels.blocks import SIZES, Blocks, multiply
from kvlite_kernels.choice import choose_ops
from tests.gguf.gguf_file import random_blocks
from tests.parity.compare import assert_parity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def weights(kind: str, outputs: int, channels: int) -> Blocks:
    return Blocks(torch.from_numpy(random_blocks(kind, outputs, channels, factor=0.01)).cuda(), kind)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1152, 1024), (33, 256), (4096, 14336)], ids=str)
@pytest.mark.parametrize("kind", list(SIZES))
def test_products_are_those_of_the_reference(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    ops = choose_ops("triton", torch.device("cuda"))
    most = ops.most_block_rows(dtype)
    if most == 0:
        pytest.skip(f"this GPU has no kernels for {dtype}")
    weight, bias = weights(kind, *shape), torch.linspace(-1.0, 1.0, shape[0], device="cuda", dtype=dtype)
    for rows in sorted({1, min(2, most), min(17, most), most}):
        x = torch.randn(rows, shape[1], device="cuda", dtype=dtype)
        assert_parity(f"{rows} rows", ops.multiply_blocks(x, weight, bias), multiply(x, weight, bias))


def test_a_captured_product_sees_new_rows() -> None:
    ops = choose_ops("triton", torch.device("cuda"))
    weight, x = weights("Q4_K", 1024, 4096), torch.zeros(1, 4096, device="cuda", dtype=torch.float16)
    ops.multiply_blocks(x, weight, None)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.multiply_blocks(x, weight, None)
    x.normal_()
    graph.replay()
    assert_parity("out", out, multiply(x, weight, None))
