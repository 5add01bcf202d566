"""Pieces of work that are recorded when they are first needed, after a rehearsal that changes nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from kvlite.engine.allocating import is_refused
from kvlite.engine.graphs import Recorder
from kvlite.engine.standing import StandingTensors
from kvlite.engine.watch import Watch

MOST_RECORDINGS = 32
"""Recordings kept at a time; the one that was used longest ago makes room."""


class NotCapturable(Exception):
    """Work that cannot be recorded; the message says why. What it works on is as it was.

    `is_final` says that the recorder itself failed, after which it must not be used again.
    """

    def __init__(self, why: str, *, is_final: bool = False) -> None:
        super().__init__(why)
        self.is_final = is_final


class Recordings:
    """What `recorder` makes of work on `tensors`, by a key that says what its kernels depend on."""

    def __init__(self, recorder: Recorder, tensors: StandingTensors) -> None:
        self.recorder = recorder
        self.tensors = tensors
        self._held: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """Those of the recordings there are, the last used at the end."""
        return tuple(self._held)

    def of(self, key: Hashable, body: Callable[[], None]) -> Callable[[], None]:
        """The recording of `body`, made now where `key` has none. Raises NotCapturable."""
        if key not in self._held:
            while len(self._held) >= MOST_RECORDINGS:
                self._held.popitem(last=False)
            self._held[key] = self._recorded(body)
        self._held.move_to_end(key)
        return self._held[key]

    def _recorded(self, body: Callable[[], None]) -> Callable[[], None]:
        is_recording = False
        try:
            self._rehearse(body)
            is_recording = True
            return self.recorder.record(body)
        except RuntimeError as error:
            if is_refused(error):
                raise
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            raise NotCapturable(why, is_final=is_recording) from error

    def _rehearse(self, body: Callable[[], None]) -> None:
        """Run `body` with all rows standing still, which leaves the cache as it is: kernels compile, all is checked."""
        integers = self.tensors.integers
        held = integers.clone()
        self.tensors.stand_still()
        try:
            with Watch(integers.device):
                body()
        finally:
            integers.copy_(held)
