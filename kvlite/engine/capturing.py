"""Whether steps are captured: chosen once, when the engine is built, and said; taken back where it cannot be kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvlite.cache.cache import SlotCache
from kvlite.engine.ahead import Ahead
from kvlite.engine.captured import CapturedStep
from kvlite.engine.chunk import CapturedChunk
from kvlite.engine.graphs import Recorder
from kvlite.engine.limits import Limits
from kvlite.engine.recordings import NotCapturable, Recordings
from kvlite.errors import UsageError
from kvlite.models.loaded import LoadedModel


def is_wanted(asked: bool | None, device: torch.device) -> bool:
    """Whether to capture steps on `device`: as asked, None for what is known to pay. Raises UsageError where none can.

    TODO: None is true on CUDA once captured steps have passed their tests on a GPU and are measured faster.
    """
    if asked and device.type != "cuda":
        raise UsageError(f"--capture: CUDA graphs need a CUDA device, and this is {device}; leave it out")
    return bool(asked)


@dataclass(frozen=True, slots=True)
class Stepping:
    """How decode steps run, `captured` or `eager`, and what stood in the way where capturing was asked for.

    Beside captured decode steps that is what stands in the way of prefill.
    """

    name: str
    obstacle: str | None = None

    def __str__(self) -> str:
        if self.obstacle is None:
            return self.name
        return f"{self.name}{', prefill eager' if self.name == 'captured' else ''}: {self.obstacle}"

    @property
    def warning(self) -> str:
        """What to tell who asked for capturing."""
        what = "prefill runs" if self.name == "captured" else "decode steps run"
        return f"--capture: {what} eagerly: {self.obstacle}"


@dataclass(frozen=True, slots=True)
class Captured:
    """What is captured: decode steps, one ahead of the host, and the chunk of a long prompt; None where that is not."""

    ahead: Ahead
    chunk: CapturedChunk | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors that recordings work on."""
        return self.ahead.step.recordings.tensors.num_bytes + (0 if self.chunk is None else self.chunk.num_bytes)

    @property
    def graph_bytes(self) -> int:
        """Bytes that the recordings themselves hold."""
        return self.ahead.step.recordings.recorder.num_bytes


def captured(
    loaded: LoadedModel, cache: SlotCache, limits: Limits, recorder: Recorder
) -> tuple[Stepping, Captured | None]:
    """Captured steps, or why they cannot be and None."""
    if loaded.state is not None:
        return Stepping("eager", f"{loaded.shape.family} models carry state that a graph does not count"), None
    step = CapturedStep(loaded, cache, recorder)
    try:
        step.rehearse()
    except NotCapturable as error:
        return uncaptured(loaded, cache, error), None
    ahead = Ahead(step, limits)
    if limits.on_full != "evict":  # no chunk comes into full slots
        return Stepping("captured"), Captured(ahead, None)
    chunk = CapturedChunk(loaded, cache, Recordings(recorder, step.recordings.tensors))
    try:
        chunk.rehearse()
    except NotCapturable as error:
        if error.is_final:
            return uncaptured(loaded, cache, error), None
        return Stepping("captured", str(error)), Captured(ahead, None)
    return Stepping("captured"), Captured(ahead, chunk)


def uncaptured(loaded: LoadedModel, cache: SlotCache, why: NotCapturable) -> Stepping:
    """Eager steps where captured ones were wanted."""
    return Stepping("eager", f"{loaded.shape.family} under policy {cache.policy.name} cannot be captured: {why}")
