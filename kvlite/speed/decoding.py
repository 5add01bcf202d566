"""Decoding, step by step, from a conversation of a given length on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import median

from kvlite.engine.engine import Engine, RowSnapshot
from kvlite.engine.request import Completion, Request, Token
from kvlite.memory.counts import KVCounts
from kvlite.speed.synthetic_cache import fast_forward

WARM_STEPS = 2
"""Steps before those that count: the first feeds the token that was waiting, the next meets new shapes."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds: the median of `count` timings, the 99th percentile, and the lowest and highest median of a round."""

    median_s: float
    p99_s: float
    low_s: float
    high_s: float
    count: int

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> Spread:
        """The spread of the timings of several rounds, none of them empty."""
        timings = sorted(seconds for each in rounds for seconds in each)
        medians = [median(each) for each in rounds]
        last = timings[-1 - len(timings) // 100]  # of fewer than a hundred the longest
        return cls(median(timings), last, min(medians), max(medians), len(timings))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of `tokens` tokens: the time to its first token."""

    tokens: int
    first_token: Spread

    @property
    def tokens_s(self) -> float:
        """Prompt tokens per second at the median."""
        return self.tokens / self.first_token.median_s


@dataclass(frozen=True, slots=True)
class Point:
    """Decoding after `tokens_seen` tokens, with `slots_live` per head: a step's time, and the bytes it has to read.

    `read_bytes` is None for mixtures of experts, of which a token reads an unknown part.
    """

    tokens_seen: int
    slots_live: int
    step: Spread
    read_bytes: int | None

    @property
    def tokens_s(self) -> float:
        """Tokens per second at the median."""
        return 1.0 / self.step.median_s

    @property
    def bytes_s(self) -> float | None:
        """Bytes per second that the tokens needed, at the median."""
        return None if self.read_bytes is None else self.read_bytes / self.step.median_s


def random_ids(count: int, vocab: int, seed: int) -> tuple[int, ...]:
    """Token ids without meaning, the same for the same seed."""
    rng = Random(seed)
    return tuple(rng.randrange(vocab) for _ in range(count))


def step_times(engine: Engine, held: RowSnapshot, seen: int, steps: int, seed: int) -> tuple[list[float], KVCounts]:
    """Time `steps` decode steps of a conversation put at `seen` tokens: seconds of each, and the counts at their start.

    `held` is a row that was fed a few tokens. Raises the engine's errors.
    """
    fast_forward(engine, 0, held, seen, seed)
    counts = engine.counts(0)
    request = Request("steps", random_ids(1, engine.loaded.shape.vocab, seed), max_tokens=steps + WARM_STEPS, row=0)
    stamps = []
    for event in engine.run([request]):
        stamps.append(time.perf_counter())
        if isinstance(event, Completion) and event.error is not None:
            raise event.error
    times = [end - start for start, end in pairwise(stamps[:-1])]  # the last is the completion's
    return times[WARM_STEPS - 1 :], counts


def first_token_s(engine: Engine, ids: tuple[int, ...]) -> float:
    """Seconds from a prompt to its first token, in row 0, which starts empty. Raises the engine's errors."""
    start = time.perf_counter()
    took = 0.0
    engine.reset(0)
    for event in engine.run([Request("prompt", ids, max_tokens=1, row=0)]):
        if isinstance(event, Token):
            took = time.perf_counter() - start
        elif event.error is not None:
            raise event.error
    return took
