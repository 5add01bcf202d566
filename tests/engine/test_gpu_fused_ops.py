"""What only a CUDA device can show of the kernels between a layer's products: that they run, and run right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvlite.models.fusing import fuse
from kvlite.models.verify import admit
from kvlite_kernels.choice import choose_ops
from kvlite_kernels.fused_ops import ACTIVATIONS, TORCH_OPS, Norm
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted
from tests.parity.compare import TOLERANCES, assert_parity

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is there"),
]
CUDA = torch.device("cuda", 0)
COUNTS = (8, 2)


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(CUDA, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [896, 2304, 4096, 8192])
def test_norms_and_gates_equal_the_reference(size: int, dtype: torch.dtype) -> None:
    ops, tolerance = choose_ops("triton", CUDA), 4 * TOLERANCES[dtype]
    x, residual = (random(3, 5, size, seed=seed, dtype=dtype) for seed in (0, 1))
    norm = Norm(random(size, seed=2, dtype=torch.float32), 1e-6)
    wide = Norm(norm.weight.double(), norm.eps)
    assert_parity("normed", ops.rms_norm(x, norm), TORCH_OPS.rms_norm(x.double(), wide), tolerance)
    expected = TORCH_OPS.add_norm(x.double(), residual.double(), wide, wide)
    for name, here, there in zip(("sum", "normed"), ops.add_norm(x, residual, norm, norm), expected, strict=True):
        assert_parity(name, here, there, tolerance)
    total = TORCH_OPS.norm_add(x.double(), residual.double(), wide)
    assert_parity("sum alone", ops.norm_add(x, residual, norm), total, tolerance)
    for name in ACTIVATIONS:
        assert_parity(name, ops.gated(x, name), TORCH_OPS.gated(x.double(), name), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("dim", "width"), [(64, 64), (80, 32), (96, 96), (128, 128), (256, 256)])
def test_rotations_equal_the_reference(dim: int, width: int, dtype: torch.dtype) -> None:
    heads, angle = random(2, 7, 12, dim, seed=0, dtype=dtype), random(2, 7, width // 2, seed=1, dtype=torch.float32)
    angle = torch.cat([angle, angle], -1)
    cos, sin = angle.cos(), angle.sin()
    norms = (Norm(random(dim, seed=2, dtype=dtype), 1e-6), Norm(random(dim, seed=3, dtype=dtype), 1e-6))
    for given in (None, norms):
        wide = None if given is None else tuple(Norm(norm.weight.double(), norm.eps) for norm in given)
        expected = TORCH_OPS.rotate(heads.double(), COUNTS, cos.double(), sin.double(), wide)  # type: ignore[arg-type]
        actual = choose_ops("triton", CUDA).rotate(heads, COUNTS, cos, sin, given)
        assert_parity("rotated", actual, expected, 4 * TOLERANCES[dtype])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"])
def test_a_model_is_fused_on_triton_as_it_is_on_torch(family: str) -> None:
    fused = []
    for kernels in ("torch", "triton"):
        loaded = admitted(tiny_model(family, SUPPORTED[family]))
        loaded.model.to(CUDA)
        moved = admit(replace(loaded, device=CUDA, rotations=None))
        fused.append(fuse(moved, choose_ops(kernels, CUDA)).fused)
    assert fused[0] == fused[1]
