"""One engine measured: prompts, decoding after so many tokens, and drift, in rounds.

Rounds alternate between the figures, so that other work on the machine falls on all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from statistics import median

from kvlite.engine.engine import Engine
from kvlite.engine.request import Completion, Request, Token
from kvlite.memory.counts import KVCounts
from kvlite.speed.report import Workload
from kvlite.speed.roofline import Ceilings, measure_ceilings, weights_read_bytes
from kvlite.speed.synthetic_cache import fast_forward, longest_conversation

_SEED_TOKENS = 64
"""Tokens fed for the keys and values that fast-forwarded rows repeat."""

_WARM_STEPS = 2
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
    """The time of a prompt of `tokens` tokens to its first token, and its tokens per second at the median."""

    tokens: int
    first_token: Spread
    tokens_s: float


@dataclass(frozen=True, slots=True)
class Point:
    """Decoding after `tokens_seen` tokens, with `slots_live` per head: a step's time, and the bytes it has to read.

    Rates are those of the median step, `share_of_copy` is of the bandwidth measured in this run. What follows from
    `read_bytes` is None for mixtures of experts, of which a token reads an unknown part.
    """

    tokens_seen: int
    slots_live: int
    step: Spread
    read_bytes: int | None
    tokens_s: float
    bytes_s: float | None
    share_of_copy: float | None


@dataclass(slots=True)
class Measurement:
    """Runs a workload on an engine whose first row is free; the results are there when `run` is through.

    `left_out` names what could not be measured, with the reason.
    """

    engine: Engine
    workload: Workload
    weights_read_bytes: int | None = field(init=False)
    ceilings: Ceilings = field(init=False)
    cold_first_token_s: float = field(init=False)
    prompts: list[Prompt] = field(default_factory=list)
    decoding: list[Point] = field(default_factory=list)
    drift: list[Point] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def run(self) -> Iterator[str]:
        """Measure, and yield the name of each part before it starts. Raises the engine's errors."""
        engine, wanted = self.engine, self.workload
        yield "the first token of the process"
        self.cold_first_token_s = self._first_token_s(_SEED_TOKENS)
        yield "what the device copies and multiplies"
        self.ceilings = measure_ceilings(engine.loaded.device, engine.loaded.compute_dtype)
        self.weights_read_bytes = weights_read_bytes(engine.loaded)
        prompts: dict[int, list[list[float]]] = {count: [] for count in self._possible("prompt", wanted.prompts, 1)}
        contexts = self._possible("context", wanted.contexts, wanted.steps + _WARM_STEPS + 1)
        slots = max((slots for layer in engine.rows.plans[-1].head_slots for slots in layer), default=1)
        is_full = tuple(dict.fromkeys(max(seen, slots) for seen in wanted.drift))  # at the earliest the last slot's
        full = self._possible("drift", is_full, wanted.steps + _WARM_STEPS + 1)
        points: dict[int, list[list[float]]] = {seen: [] for seen in (*contexts, *full)}
        counts: dict[int, KVCounts] = {}
        for number in range(wanted.rounds):
            for count, rounds in prompts.items():
                yield f"round {number + 1} of {wanted.rounds}: a prompt of {count:,} tokens"
                rounds.append([self._first_token_s(count)])
            for seen, rounds in points.items():
                yield f"round {number + 1} of {wanted.rounds}: {wanted.steps} steps after {seen:,} tokens"
                times, counts[seen] = self._step_times(seen, wanted.seed + number)
                rounds.append(times)
        for count, rounds in prompts.items():
            first_token = Spread.of(rounds)
            self.prompts.append(Prompt(count, first_token, count / first_token.median_s))
        measured = {seen: self._point(counts[seen], Spread.of(rounds)) for seen, rounds in points.items()}
        self.decoding = [measured[seen] for seen in contexts]
        self.drift = [measured[seen] for seen in full]

    @property
    def drift_share(self) -> float | None:
        """The growth of the median step from the first point to the last, as a share; None without two points."""
        if len(self.drift) < 2:
            return None
        return self.drift[-1].step.median_s / self.drift[0].step.median_s - 1.0

    def _first_token_s(self, count: int) -> float:
        """Seconds from a prompt of `count` tokens to its first token, in row 0. Raises the engine's errors."""
        ids = self._random_ids(count, self.workload.seed)
        start = time.perf_counter()
        took = 0.0
        self.engine.rows.reset(0)
        for event in self.engine.run([Request("prompt", ids, max_tokens=1, row=0)]):
            if isinstance(event, Token):
                took = time.perf_counter() - start
            elif event.error is not None:
                raise event.error
        return took

    def _step_times(self, seen: int, seed: int) -> tuple[list[float], KVCounts]:
        """Time the decode steps of a conversation put at `seen` tokens: seconds of each, and the counts at their start.

        Raises the engine's errors.
        """
        self._first_token_s(_SEED_TOKENS)
        fast_forward(self.engine, 0, self.engine.rows.snapshot(0), seen, seed)
        counts = self.engine.rows.counts(0)
        most = self.workload.steps + _WARM_STEPS
        stamps = []
        for event in self.engine.run([Request("steps", self._random_ids(1, seed), max_tokens=most, row=0)]):
            stamps.append(time.perf_counter())
            if isinstance(event, Completion) and event.error is not None:
                raise event.error
        times = [end - start for start, end in pairwise(stamps[:-1])]  # the last is the completion's
        return times[_WARM_STEPS - 1 :], counts

    def _random_ids(self, count: int, seed: int) -> tuple[int, ...]:
        rng = Random(seed)
        return tuple(rng.randrange(self.engine.loaded.shape.vocab) for _ in range(count))

    def _possible(self, name: str, counts: tuple[int, ...], room: int) -> tuple[int, ...]:
        """The counts that leave `room` tokens before the conversation ends; the others go to `left_out`."""
        end = longest_conversation(self.engine)
        late = [count for count in counts if end is not None and count + room > end]
        if late:
            said = ", ".join(f"{count:,}" for count in late)
            self.left_out.append(f"{name} {said}: a conversation ends after {end:,} tokens here")
        return tuple(count for count in counts if count not in late)

    def _point(self, counts: KVCounts, step: Spread) -> Point:
        read = None if self.weights_read_bytes is None else self.weights_read_bytes + counts.live_bytes
        bytes_s = None if read is None else read / step.median_s
        share = None if bytes_s is None else bytes_s / self.ceilings.copy_bytes_s
        return Point(counts.tokens_seen, counts.tokens_kept, step, read, 1.0 / step.median_s, bytes_s, share)
