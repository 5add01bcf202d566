"""The kernels an engine's cache runs on: as named, or Triton's where a trial and the model itself found them right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from kvlite.cache.cache import SlotCache
from kvlite.cache.policies import Window
from kvlite.cache.policy import Policy
from kvlite.errors import is_of_kernels
from kvlite.memory.format import SlotFormat
from kvlite.models.kernel_trial import KernelTrials
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import dry_cache, probe_ids
from kvlite.models.verify import LOGIT_TOLERANCE, relative_error
from kvlite.record.trials import Trial
from kvlite_kernels.fused_ops import TORCH_OPS
from kvlite_kernels.trial.task import MODULES, Part, SlotsPart

PROMPT = 12


class KernelChoice:
    """The kernels called `name`, one of `kvlite_kernels.choice.KERNELS`, whatever the slots hold."""

    def __init__(self, name: str = "auto") -> None:
        self.name = name
        self.told = ""
        """The findings of a trial about those that were chosen last, in words; empty without one."""

    def name_for(self, stored: SlotFormat, policy: Policy) -> str:
        """The kernels for slots of format `stored` under `policy`."""
        return self.name

    def set_aside(self) -> None:
        """Take torch from now on."""
        self.name = self.told = "torch"

    def condemn(self, parts: Sequence[Part], why: str) -> None:
        """Note that the kernels went wrong in mid-answer, where that is kept."""


class TriedKernels(KernelChoice):
    """Triton's kernels where `trials` found them right and faster, and the logits of `loaded` on them are torch's."""

    def __init__(self, loaded: LoadedModel, trials: KernelTrials, say: Callable[[str], None]) -> None:
        super().__init__()
        self._loaded, self._trials, self._say = loaded, trials, say

    def name_for(self, stored: SlotFormat, policy: Policy) -> str:
        """See KernelChoice. Waits for a trial, or makes one."""
        if self.name == "torch":  # they went wrong before
            return self.name
        part = part_of(stored, policy)
        if not stored.is_quantised and getattr(torch, stored.name) is not self._loaded.dtype:
            self.told = f"slots in {stored.name} are not tried beside a model in {self._loaded.dtype}"
            self._say(f"kernels on {part}: torch: {self.told}")
            return "torch"
        found = self._trials.finding(part)
        if found.is_taken:
            found = self._through_the_model(stored, part, found)
        self.told = f"verified, {found.gain:.1f}x" if found.is_taken else str(found)
        self._say(f"kernels on {part}: {'triton' if found.is_taken else 'torch'}: {found}")
        return "triton" if found.is_taken else "torch"

    def condemn(self, parts: Sequence[Part], why: str) -> None:
        """See KernelChoice; later starts will know."""
        for part in parts:
            self._trials.condemn(part, f"in mid-answer: {why}")

    def _through_the_model(self, stored: SlotFormat, part: SlotsPart, found: Trial) -> Trial:
        """The finding, unless the model computes something else on these kernels; found out once for its weights."""
        key = f"{part} in {self._loaded.fingerprint}" if self._loaded.fingerprint else None
        known = None if key is None else self._trials.known_of(key)
        if known is None:
            why = unlike_torch(self._loaded, stored)
            known = Trial("right") if why is None else Trial("wrong", why)
            if key is not None:
                self._trials.note_of(key, known)
        return found if known.state == "right" else known


def part_of(stored: SlotFormat, policy: Policy) -> SlotsPart:
    """The part of a trial that such slots need."""
    bits = (stored.k_bits, stored.v_bits) if stored.is_quantised else (0, 0)
    return SlotsPart(*bits, policy.statistic, policy.heads, policy.echoes, policy.has_bias)


@torch.inference_mode()
def unlike_torch(loaded: LoadedModel, stored: SlotFormat) -> str | None:
    """The difference of logits on Triton's slots from those on torch's, with room and while it evicts; None: none.

    Under a policy whose victims follow from positions, so that rounding changes none.
    """
    policy = Window()
    slots = policy.min_slots() + PROMPT
    held = None if loaded.state is None else loaded.state.snapshot()  # of a conversation whose cache is exchanged
    try:
        caches = [dry_cache(loaded, slots, stored, policy, kernels) for kernels in ("torch", "triton")]
        steps = [PROMPT, *[1] * (slots + 8 - PROMPT)] if caches[0].plan.fewest == slots else [PROMPT, 1, 1, 1]
        wanted, got = (_fed(loaded, cache, steps) for cache in caches)
    except Exception as error:
        if not is_of_kernels(error):
            raise
        return in_a_line(error)
    finally:
        if loaded.state is not None and held is not None:
            loaded.state.restore(held)
    for end, one, other in zip(accumulate(steps), wanted, got, strict=True):
        off = relative_error(other, one)
        if not off <= 2 * LOGIT_TOLERANCE[loaded.compute_dtype]:
            return f"the logits of this model on {stored.name} slots are off by {off:.1%} at token {end}"
    return None


def in_a_line(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def parts_on_kernels(loaded: LoadedModel, cache: SlotCache) -> list[Part]:
    """The parts that run on Triton's kernels: the slots of `cache`, fused modules, both or none."""
    slots: list[Part] = [] if cache.backend.name == "torch" else [part_of(cache.stored, cache.policy)]
    has_modules = any(module.ops.name != "torch" for module in _with_ops(loaded))
    return slots + [MODULES] * has_modules


def without_kernels(loaded: LoadedModel) -> None:
    """Let fused modules compute in torch from now on."""
    for module in _with_ops(loaded):
        module.ops = TORCH_OPS


def _with_ops(loaded: LoadedModel) -> list[Any]:
    return [module for module in loaded.model.modules() if hasattr(module, "ops")]


def _fed(loaded: LoadedModel, cache: SlotCache, steps: Sequence[int]) -> list[torch.Tensor]:
    """The logits behind each of `steps`, so many ids each, fed to an empty row and to a state that knows of none."""
    ids, logits, start = probe_ids(loaded, sum(steps)), [], 0
    if loaded.state is not None:
        loaded.state.reset()
    for count in steps:
        pos = torch.arange(start, start + count, dtype=torch.int32, device=ids.device)[None]
        step = cache.begin(slice(0, 1), pos, pos, (count,), None)
        logits.append(loaded.forward(ids[:, start : start + count], cache, step))
        start += count
    return logits
