"""The operations of fused modules: torch against transformers, kernels against torch."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.phi3 import modeling_phi3

from kvlite_kernels.fused_ops import ACTIVATIONS, TORCH_OPS, FusedOps, Norm
from tests.parity.compare import TOLERANCES, assert_parity
from tests.parity.poison import poison, poisoned_empty

__all__ = ["poison"]
pytestmark = pytest.mark.usefixtures("poison")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = {"one token": (1, 1, 64), "odd width": (2, 3, 63), "hidden": (1, 5, 111), "wide": (3, 1, 2304)}
COUNTS = (3, 1)


@pytest.fixture
def triton_ops() -> FusedOps:
    pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":  # tests/conftest.py sets it where there is no CUDA device
        pytest.skip("on a CUDA device these need TRITON_INTERPRET=1")
    from kvlite_kernels.triton_set.fused_ops import TritonOps
    from kvlite_kernels.triton_set.tiles import INTERPRETER

    return TritonOps(INTERPRETER)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def spaced(x: Tensor) -> Tensor:
    """`x` as a view whose rows are followed by NaN."""
    whole = poisoned_empty(*x.shape[:-1], x.shape[-1] + 5, dtype=x.dtype)
    view = whole[..., : x.shape[-1]]
    view.copy_(x)
    return view


def norm_of(size: int, seed: int, dtype: torch.dtype = torch.float32) -> Norm:
    return Norm(1.0 + 0.3 * random(size, seed=seed, dtype=dtype), 10.0**-seed)


def exact(norm: Norm) -> Norm:
    return Norm(norm.weight.double(), norm.eps)


@pytest.mark.parametrize(("source", "offset"), [(LlamaRMSNorm, 0.0), (Gemma2RMSNorm, 1.0)], ids=["llama", "gemma"])
def test_the_norm_is_that_of_transformers(source: type[nn.Module], offset: float) -> None:
    module = source(48, 1e-5)
    module.weight.data = random(48, seed=1)
    x = random(2, 3, 48)
    assert_parity("normed", TORCH_OPS.rms_norm(x, Norm(module.weight.detach() + offset, 1e-5)), module(x).detach())


def test_a_sum_is_normed_before_it_after_it_or_both() -> None:
    x, residual, before, after = random(2, 3, 48), random(2, 3, 48, seed=1), norm_of(48, 2), norm_of(48, 3)
    for inner, term in ((None, x), (before, TORCH_OPS.rms_norm(x, before))):
        total, normed = TORCH_OPS.add_norm(x, residual, after, inner)
        assert_parity("sum", total, residual + term)
        assert_parity("normed", normed, TORCH_OPS.rms_norm(residual + term, after))
    assert_parity("sum alone", TORCH_OPS.norm_add(x, residual, before), residual + TORCH_OPS.rms_norm(x, before))


ROTATIONS = {
    "all channels": (modeling_llama, 1.0),
    "a part": (modeling_phi3, 0.5),
}


def tables(width: int) -> tuple[Tensor, Tensor]:
    """cos and sin [2, 3, width] of each channel's angle, strided."""
    angle = 3.0 * random(2, 3, width // 2, seed=5)
    angle = spaced(torch.cat([angle, angle], -1))
    whole = poisoned_empty(2, 3, 2 * width)
    return (whole.copy_(torch.stack([angle.cos(), angle.sin()], -1).flatten(-2))[..., i::2] for i in (0, 1))


@pytest.mark.parametrize(("module", "part"), ROTATIONS.values(), ids=ROTATIONS)
def test_rotation_is_that_of_transformers(module: Any, part: float) -> None:
    heads, (cos, sin) = random(2, 3, 6, 20), tables(int(20 * part))
    q, k = (part.transpose(1, 2) for part in heads[:, :, : sum(COUNTS)].split(COUNTS, 2))
    expected = torch.cat(module.apply_rotary_pos_emb(q, k, cos, sin), 1).transpose(1, 2)
    assert_parity("rotated", TORCH_OPS.rotate(heads, COUNTS, cos, sin), expected)


@pytest.mark.parametrize(("name", "theirs"), [("silu", "silu"), ("gelu_tanh", "gelu_pytorch_tanh")])
def test_the_gate_is_that_of_transformers(name: str, theirs: str) -> None:
    gate, up = random(2, 3, 30), random(2, 3, 30, seed=1)
    assert_parity("gated", TORCH_OPS.gated(torch.cat([gate, up], -1), name), ACT2FN[theirs](gate) * up)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_norm_kernels_equal_the_reference(triton_ops: FusedOps, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = spaced(random(*shape, dtype=dtype)), random(*shape, seed=1, dtype=dtype)
    before, after = norm_of(shape[-1], 2, dtype), norm_of(shape[-1], 3)  # fp32 weights, as an offset makes them
    assert_parity(
        "normed", triton_ops.rms_norm(x, before), TORCH_OPS.rms_norm(x.double(), exact(before)), TOLERANCES[dtype]
    )
    for inner in (None, before):
        wide = None if inner is None else exact(inner)
        total, normed = TORCH_OPS.add_norm(x.double(), residual.double(), exact(after), wide)
        actual = triton_ops.add_norm(x, residual, after, inner)
        assert {tensor.dtype for tensor in actual} == {dtype}
        assert_parity("sum", actual[0], total, TOLERANCES[dtype])
        assert_parity("sum normed", actual[1], normed, 2 * TOLERANCES[dtype])
    assert_parity("sum alone", triton_ops.norm_add(x, residual, before), total, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "width"), [(64, 64), (80, 80), (80, 32), (24, 6), (18, 18)])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
def test_the_rotary_kernel_equals_the_reference(
    triton_ops: FusedOps, dim: int, width: int, normed: bool, dtype: torch.dtype
) -> None:
    heads = spaced(random(2, 3, 6, dim, dtype=dtype))
    cos, sin = tables(width)
    norms = (norm_of(dim, 2), norm_of(dim, 3, dtype)) if normed else None
    wide = (exact(norms[0]), exact(norms[1])) if norms is not None else None
    expected = TORCH_OPS.rotate(heads.double(), COUNTS, cos.double(), sin.double(), wide)
    actual = triton_ops.rotate(heads, COUNTS, cos, sin, norms)
    assert actual.dtype == dtype
    assert_parity("rotated", actual, expected, TOLERANCES[dtype])


def test_all_rows_may_turn_by_the_same_angles(triton_ops: FusedOps) -> None:
    heads, (cos, sin) = random(2, 3, 6, 20), (table[:1] for table in tables(20))
    assert_parity("rotated", triton_ops.rotate(heads, COUNTS, cos, sin), TORCH_OPS.rotate(heads, COUNTS, cos, sin))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [1, 63, 1111])
def test_the_gate_kernel_equals_the_reference(
    triton_ops: FusedOps, size: int, activation: str, dtype: torch.dtype
) -> None:
    gate_up = spaced(3.0 * random(2, 3, 2 * size, dtype=dtype))
    actual = triton_ops.gated(gate_up, activation)
    assert actual.dtype == dtype
    assert_parity("gated", actual, TORCH_OPS.gated(gate_up.double(), activation), TOLERANCES[dtype])


def test_the_gate_keeps_what_is_not_a_number(triton_ops: FusedOps) -> None:
    gate_up = torch.tensor([[torch.nan, 1.0, 1.0, torch.inf]])
    for activation in ACTIVATIONS:
        assert triton_ops.gated(gate_up, activation).isfinite().tolist() == [[False, False]]


def test_both_sets_have_a_name(triton_ops: FusedOps) -> None:
    assert (TORCH_OPS.name, triton_ops.name) == ("torch", "triton")
