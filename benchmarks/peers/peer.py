"""The question every engine answers, and the time it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Case:
    """A prompt of `context` tokens; an engine with a bounded cache keeps `slots` of them per KV head."""

    context: int
    slots: int


@dataclass(frozen=True)
class Took:
    """Seconds to the first token and to the last of `tokens`, and the ids.

    `processor_s` is the processor time of the process that computed; `kv_bytes` the most bytes of slots that were live,
    None where an engine does not count them.
    """

    first_s: float
    total_s: float
    tokens: int
    ids: list[int]
    processor_s: float
    kv_bytes: int | None = None

    @property
    def step_s(self) -> float:
        """Seconds of one decode step."""
        return (self.total_s - self.first_s) / (self.tokens - 1)


class NotAvailable(Exception):
    """An engine cannot run here; the message says why."""


class Peer(Protocol):
    """An engine with weights; `note` is what a reader must know to compare it, empty where nothing."""

    name: str
    note: str

    def answer(self, prompt: list[int], tokens: int, case: Case) -> Took:
        """Generate `tokens` greedily. Raises NotAvailable where it cannot."""
        ...

    def read_bytes(self, case: Case) -> int | None:
        """Bytes one step has to read: weights, and keys and values; None where it does not know."""
        ...
