"""A cache, and what feeds it: made together, for an engine's first rows and when another cache takes its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvlite.cache.cache import SlotCache
from kvlite.cache.policy import Policy
from kvlite.engine.decode_graphs import WORTH_IT, GraphRecorder
from kvlite.engine.device_memory import allocating
from kvlite.engine.feeding import CAPTURED, Feeder
from kvlite.engine.kernels import KernelChoice
from kvlite.engine.limits import Limits
from kvlite.memory.format import SlotFormat
from kvlite.memory.plan import CachePlan
from kvlite.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class FeederMaker:
    """Makes caches for `loaded` on the `kernels` that are right for each, and their feeders.

    Decode steps are replayed from what `recorder` makes of them where that proves exact and, unless they
    `must_capture`, faster; `warn` is told where that does not work.
    """

    loaded: LoadedModel
    kernels: KernelChoice
    recorder: GraphRecorder | None
    must_capture: bool
    warn: Callable[[str], None]

    def make(
        self, plan: CachePlan, policy: Policy, stored: SlotFormat, on_full: str | None, step: str | None = None
    ) -> Feeder:
        """Allocate the cache of `plan`, whose rows are empty.

        `step` is the way decode steps went in the cache before, and go on; None: it is to be found out. Raises
        DoesNotFit or OutOfMemory where the cache cannot be allocated.
        """
        loaded, on_full = self.loaded, policy.when_full(on_full)
        kernels = self.kernels.name_for(stored, policy)
        with allocating():
            cache = SlotCache(loaded.shape, plan, policy, stored, loaded.device, kernels, loaded.dtype)
        for index, layer in cache.layers.items():
            layer.rotation = (loaded.rotations or {}).get(index)
        echoes = policy.echoes and on_full == "evict"
        is_whole = plan.slots == plan.most_slots  # few conversations get so far that anything is evicted
        limits = Limits(cache, loaded.shape.vocab, loaded.window, loaded.rotations is not None, on_full)
        feeder = Feeder(loaded, cache, limits, echoes=echoes, hears_late=is_whole, warn=self.warn)
        if self.recorder is not None:
            if step is None:
                feeder.capture(self.recorder, least=None if self.must_capture else WORTH_IT)
            elif step == CAPTURED:
                feeder.capture(self.recorder, least=0.0)
            else:
                feeder.step = step
        return feeder
