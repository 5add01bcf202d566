"""Peers in turns, round after round, until the time is up; what failed or had no time is kept with its reason."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from statistics import median

import torch

from peers.peer import NotAvailable, Peer, Took


@dataclass
class Run:
    """The end of a run by the clock, what failed in it and why, and what it did not get to."""

    ends_s: float
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, minutes: float) -> Run:
        """A run that starts now."""
        return cls(time.monotonic() + 60 * minutes)

    def has_time(self) -> bool:
        """Say if something may still begin."""
        return time.monotonic() < self.ends_s


@dataclass(frozen=True)
class Timings:
    """Rounds of a peer, and the bytes the device held at its peak (None where it cannot be told)."""

    rounds: tuple[Took, ...]
    peak_bytes: int | None

    def median(self, figure: Callable[[Took], float]) -> float:
        """The median of a figure of the rounds."""
        return median(figure(took) for took in self.rounds)

    def spread(self, figure: Callable[[Took], float]) -> tuple[float, float]:
        """The lowest and highest of a figure."""
        return min(map(figure, self.rounds)), max(map(figure, self.rounds))


def prompt_of(tokens: int, vocab: int) -> list[int]:
    """Draw a prompt, the same each time."""
    rng = Random(1)
    return [rng.randrange(5, vocab) for _ in range(tokens)]


def in_turns(
    peers: Mapping[str, Peer],
    ask: Callable[[Peer], Took],
    *,
    rounds: int,
    run: Run,
    what: str,
) -> dict[str, Timings]:
    """`rounds` rounds of every peer in turn after one that warms up; a peer that fails is left out with its reason.

    A peer that the time leaves with no round that counts is left out too.
    """
    found: dict[str, list[Took]] = {name: [] for name in peers}
    peaks: dict[str, int | None] = {}
    for number in range(rounds + 1):
        for name, peer in peers.items():
            if f"{what}: {name}" in run.failed or not run.has_time():
                continue
            try:
                took, peaks[name] = _watched(lambda peer=peer: ask(peer))  # type: ignore[misc]
            except (NotAvailable, ImportError, RuntimeError, ValueError) as error:  # what other people's engines raise
                run.failed[f"{what}: {name}"] = next(iter(str(error).splitlines()), type(error).__name__)
                if not isinstance(error, (NotAvailable, torch.OutOfMemoryError)):
                    traceback.print_exc()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            if number:
                found[name].append(took)
    measured = {name: Timings(tuple(takes), peaks[name]) for name, takes in found.items() if takes}
    missing = [f"{what}: {name}" for name in peers if name not in measured]
    run.left_out += [name for name in missing if name not in run.failed]
    return measured


def _watched(work: Callable[[], Took]) -> tuple[Took, int | None]:
    """Do the work, and note the most the allocator held while it ran."""
    if not torch.cuda.is_available():
        return work(), None
    torch.cuda.reset_peak_memory_stats()
    took = work()
    return took, torch.cuda.max_memory_allocated()
