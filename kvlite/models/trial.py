"""Judges fused modules against float32, with the rounding error of the modules they replace as the yardstick.

The model reads a sentence on transformers' own attention. Each module that is to be replaced computes its output three
times from the same inputs: as it is, fused, and as it is but in float32, one matrix at a time. In bfloat16 two honest
orders of the same operations differ by more than a fixed tolerance that still catches a mistake; that both are equally
near to float32 says more. A module at a time, because over a whole model the rounding of all hides the fault of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from kvlite.models.attention_interface import ATTENTION
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import text_ids
from kvlite_kernels.fused_ops import TORCH_OPS

FACTOR = 1.5
FLOOR = 1e-5
"""A fused module may be off by FACTOR times the error of what it replaces, and FLOOR, both relative."""

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The relative errors against float32 of the worst fused module and of the one it replaces."""

    fused: float
    eager: float

    @property
    def bound(self) -> float:
        """The largest error of the fused module that passes."""
        return FACTOR * self.eager + FLOOR

    @property
    def passes(self) -> bool:
        """False also where an error is not a number."""
        return self.fused <= self.bound

    def __str__(self) -> str:
        return (
            f"off by {self.fused:.2g} from float32, more than {self.bound:.2g}; unfused it is off by {self.eager:.2g}"
        )


@torch.inference_mode()
def judge(loaded: LoadedModel, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> Verdict:
    """The verdict on modules and their fused forms, which see the inputs of the ones they are to replace.

    Raises what a fused module raises, and RuntimeError where the model's text does not reach any module.
    """
    verdicts: list[Verdict] = []
    handles = [
        module.register_forward_hook(_comparison(made, loaded.compute_dtype in _HALF, verdicts), with_kwargs=True)
        for module, made in pairs
    ]
    try:
        loaded.model.set_attn_implementation("eager")
        loaded.model(input_ids=text_ids(loaded), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
        loaded.model.set_attn_implementation(ATTENTION)
    if not verdicts:
        raise RuntimeError("never ran")
    return next((one for one in verdicts if not one.passes), max(verdicts, key=lambda one: one.fused / one.bound))


def _comparison(made: nn.Module, is_rounded: bool, verdicts: list[Verdict]) -> Callable[..., None]:
    """A forward hook that adds the verdict on one call of a module."""

    def compare(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        eager, exact = _tensor(out), _tensor(out)
        if is_rounded:
            with _torch_ops(module), _Float32():
                exact = _tensor(module.forward(*args, **kwargs))
        verdicts.append(Verdict(_error(_tensor(made(*args, **kwargs)), exact), _error(eager, exact)))

    return compare


@contextmanager
def _torch_ops(module: nn.Module) -> Iterator[None]:
    """Let what is fused inside `module` run on plain torch: kernels take memory as it is, in any dtype."""
    fused: list[Any] = [part for part in module.modules() if hasattr(part, "ops")]
    held = [part.ops for part in fused]
    try:
        for part in fused:
            part.ops = TORCH_OPS
        yield
    finally:
        for part, ops in zip(fused, held, strict=True):
            part.ops = ops


class _Float32(TorchFunctionMode):
    """Widens half-precision tensors and dtypes to float32 in every function that is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide_args, wide_kwargs = tree_map(_widened, (args, kwargs or {}))
        return func(*wide_args, **wide_kwargs)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _HALF:
        return value.float()
    return torch.float32 if value in _HALF else value


def _tensor(out: Any) -> Tensor:
    """The hidden states among what a module returns."""
    found = out if isinstance(out, Tensor) else out[0]
    assert isinstance(found, Tensor)
    return found.float()


def _error(value: Tensor, exact: Tensor) -> float:
    """The root mean square over tokens of each one's relative error: some tokens are a thousand times larger."""
    off = (value - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-12)
    return float(off.square().mean().sqrt())
