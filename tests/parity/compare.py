"""The one comparison of tensors: it names the tensor, and where it is worst."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest error, as a share of the largest expected magnitude (at least 1), by the dtype of what was computed."""


def assert_parity(name: str, actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """`actual` equals `expected` (of any dtype) to `tolerance`; integers, booleans and infinities exactly."""
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not actual.is_floating_point():
        worst = (actual != expected).nonzero()
        assert len(worst) == 0, f"{name}: {len(worst)} differ, the first at {worst[0].tolist()}"
        return
    if tolerance is None:
        tolerance = TOLERANCES[actual.dtype]
    actual, expected = actual.double(), expected.double()
    assert not actual.isnan().any(), f"{name}: NaN at {actual.isnan().nonzero()[0].tolist()}"
    unequal = torch.where(actual == expected, 0.0, (actual - expected).abs())  # equal infinities have no difference
    finite = expected[expected.isfinite()]
    allowed = tolerance * max(1.0, finite.abs().max().item() if finite.numel() else 0.0)
    error = unequal.max().item() if unequal.numel() else 0.0
    if error > allowed:
        index = tuple((unequal == error).nonzero()[0].tolist())
        values = f"{actual[index].item():.9g}, expected {expected[index].item():.9g}"
        raise AssertionError(f"{name}: off by {error:.3g} of at most {allowed:.3g} at {list(index)}: {values}")
