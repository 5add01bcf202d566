"""Kernels that are wrong in one way each, on top of torch's, and processes that try them.

    python -m tests.parity.doubles right|slower|wrong|hang|abort|segfault|exit|interrupted|killed|full|unstarted

plays the process of a trial, with a clock of its own.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from kvlite_kernels.backend import TORCH, Backend, LayerSizes
from kvlite_kernels.eviction import Protection
from kvlite_kernels.fused_ops import TORCH_OPS, FusedOps, HeadNorms, Norm
from kvlite_kernels.lowbit import Packed
from kvlite_kernels.slots import Slots
from kvlite_kernels.trial.process import run, say
from kvlite_kernels.trial.task import Task

TWICE, SAME, HALF = ((0.0, torchs, 0.0, ours) for torchs, ours in ((2.0, 1.0), (1.0, 1.0), (1.0, 2.0)))
"""Readings of a clock before and after a step of torch and one of the kernels."""


class Times099(Backend):
    """Answers that are 1 % too small."""

    def attend(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        out, received = super().attend(*given)
        return out * 0.99, received


class SeesFreeSlots(Backend):
    """Free slots are attended as if a token were in them."""

    def attend(self, q: Tensor, q_pos: Tensor, segments: list[Any], *rest: Any) -> tuple[Tensor, Tensor | None]:
        held = replace(segments[0], pos=segments[0].pos.clamp(min=0))
        return super().attend(q, q_pos, [held, *segments[1:]], *rest)


class GivesNaN(Backend):
    """One number is none."""

    def attend(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        out, received = super().attend(*given)
        out[-1, -1, -1, -1] = torch.nan
        return out, received


class FlipsABit(Backend):
    """The last bit of one number differs from call to call, as with a race."""

    calls = 0

    def attend(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        out, received = super().attend(*given)
        self.calls += 1
        out.view(torch.int32)[0, 0, 0, 0] ^= self.calls % 2
        return out, received


class LosesAStatistic(Backend):
    """The last slot receives nothing."""

    def attend(self, q: Tensor, q_pos: Tensor, segments: list[Any], *rest: Any) -> tuple[Tensor, Tensor | None]:
        given = super().attend(q, q_pos, segments, *rest)
        if segments[0].statistic is not None:
            seen = segments[0].pos == segments[0].pos.amax()
            segments[0].statistic.masked_fill_(seen, 0.0)
        return given


class ForgetsNothing(Backend):
    """All stays of what keys received before."""

    def attend(self, q: Tensor, q_pos: Tensor, segments: list[Any], geometry: Any, seen: Any) -> Any:
        return super().attend(q, q_pos, segments, geometry, seen and replace(seen, retention=None))


class CountsTheFirst(Backend):
    """Count the first queries where only the last count."""

    def attend(self, q: Tensor, q_pos: Tensor, segments: list[Any], geometry: Any, seen: Any) -> Any:
        if seen is not None and seen.queries is not None:
            seen = replace(seen, weight=seen.weight.flip(1), queries=None)
        return super().attend(q, q_pos, segments, geometry, seen)


class ReadsRowByRow(Backend):
    """Keys are read as if a row's heads lay side by side."""

    def attend(self, q: Tensor, q_pos: Tensor, segments: list[Any], *rest: Any) -> tuple[Tensor, Tensor | None]:
        k = segments[0].k
        first, second = sorted(k.stride()[:2], reverse=True)
        held = replace(segments[0], k=k.as_strided(k.shape, (first, second, *k.stride()[2:])))
        return super().attend(q, q_pos, [held, *segments[1:]], *rest)


class HearsBeyondAWindow(Backend):
    """Queries that come once more see all keys."""

    def heard(self, q: Tensor, q_pos: Tensor, segments: Any, geometry: Any, observation: Any) -> Tensor:
        return super().heard(q, q_pos, segments, replace(geometry, window=None), observation)


class HearsLess(Backend):
    """The mass that is heard again is 1 % too little."""

    def heard(self, *given: Any) -> Tensor:
        return super().heard(*given) * 0.99


class TakesTheYoungest(Backend):
    """Of equal scores the youngest token goes."""

    def evict(self, slots: Slots, score: Tensor, next_pos: Tensor, protection: Protection) -> None:
        super().evict(slots, score - 1e-4 * slots.pos, next_pos, protection)


class ForgetsPins(Backend):
    """Pinned tokens go as others do."""

    def evict(self, slots: Slots, score: Tensor, next_pos: Tensor, protection: Protection) -> None:
        super().evict(slots, score, next_pos, replace(protection, pins=None))


class LeavesAScale(Backend):
    """A token that moves leaves the scale of its key behind."""

    def evict(self, slots: Slots, score: Tensor, next_pos: Tensor, protection: Protection) -> None:
        held = slots.k.scale.clone() if isinstance(slots.k, Packed) else None
        super().evict(slots, score, next_pos, protection)
        if held is not None and isinstance(slots.k, Packed):
            slots.k.scale.copy_(held)


class CodesAside(Backend):
    """One code is off by one."""

    def quantise(self, x: Tensor, bits: int, group: int) -> Packed:
        coded = super().quantise(x, bits, group)
        coded.codes.view(-1)[0] ^= 1
        return coded


class Raises(Backend):
    """Nothing is computed."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def attend(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        raise self.error


class WrongGate(FusedOps):
    """Gates are 1 % too small."""

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        return super().gated(gate_up, activation) * 0.99


class WrongRotation(FusedOps):
    """Heads turn the other way."""

    def rotate(
        self, heads: Tensor, counts: tuple[int, int], cos: Tensor, sin: Tensor, norms: HeadNorms | None = None
    ) -> Tensor:
        return super().rotate(heads, counts, cos, -sin, norms)


class WrongNorm(FusedOps):
    """The residual is forgotten."""

    def add_norm(self, x: Tensor, residual: Tensor, after: Norm, before: Norm | None = None) -> tuple[Tensor, Tensor]:
        return super().add_norm(x, torch.zeros_like(residual), after, before)


class Hangs(Backend):
    """A kernel that never ends."""

    def attend(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        time.sleep(600)
        raise AssertionError


class Dies(Backend):
    """A kernel that takes its process along."""

    def __init__(self, how: str) -> None:
        self.how = how

    def attend(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        if self.how == "abort":
            os.abort()
        if self.how == "segfault":
            faulthandler._sigsegv()  # type: ignore[attr-defined]
        if self.how in ("interrupted", "killed"):
            os.kill(os.getpid(), signal.SIGINT if self.how == "interrupted" else signal.SIGKILL)
            time.sleep(60)
        sys.stderr.write("a driver says why\n")
        sys.stderr.flush()
        os._exit(7)


def backend(name: str) -> Backend:
    """The kernels that a process called `name` tries."""
    if name in ("right", "slower"):
        return TORCH
    if name == "full":
        return Raises(torch.OutOfMemoryError("CUDA out of memory"))
    return {"wrong": Times099, "hang": Hangs}.get(name, lambda: Dies(name))()


def main(name: str) -> None:
    if name == "unstarted":
        sys.exit(3)

    def made(layers: Sequence[LayerSizes], rows: int, dtypes: Sequence[torch.dtype], device: torch.device) -> Backend:
        return backend(name)

    sys.stdout.write("a library's own words\n[1]\n")
    clock = partial(next, cycle(HALF if name == "slower" else TWICE))
    run(Task.read(sys.stdin.read()), say, made, lambda device: TORCH_OPS, clock)


if __name__ == "__main__":
    main(sys.argv[1])
