"""One engine measured: prompts, decoding after so many tokens, and drift, in rounds.

Rounds alternate between the figures, so that other work on the machine falls on all of them alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kvlite.engine.engine import Engine
from kvlite.memory.counts import KVCounts
from kvlite.speed.decoding import WARM_STEPS, Point, Prompt, Spread, first_token_s, random_ids, step_times
from kvlite.speed.report import Workload
from kvlite.speed.roofline import Ceilings, measure_ceilings, weights_read_bytes
from kvlite.speed.synthetic_cache import longest_conversation

_SEED_TOKENS = 64
"""Tokens fed for the keys and values that fast-forwarded rows repeat."""


@dataclass(slots=True)
class Measurement:
    """Runs a workload on an engine whose first row is free; the results are there when `run` is through.

    `left_out` names what could not be measured, with the reason.
    """

    engine: Engine
    workload: Workload
    ceilings: Ceilings | None = None
    cold_first_token_s: float | None = None
    prompts: list[Prompt] = field(default_factory=list)
    decoding: list[Point] = field(default_factory=list)
    drift: list[Point] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def run(self) -> Iterator[str]:
        """Measure, and yield the name of each part before it starts. Raises the engine's errors."""
        engine, wanted = self.engine, self.workload
        yield "the first token of the process"
        self.cold_first_token_s = first_token_s(engine, self._ids(_SEED_TOKENS))
        held = engine.snapshot(0)
        yield "what the device copies and multiplies"
        self.ceilings = measure_ceilings(engine.loaded.device, engine.loaded.compute_dtype)
        prompts: dict[int, list[list[float]]] = {count: [] for count in self._possible("prompt", wanted.prompts, 1)}
        contexts = self._possible("context", wanted.contexts, wanted.steps + WARM_STEPS + 1)
        full = self._possible("drift", self._full(wanted.drift), wanted.steps + WARM_STEPS + 1)
        points: dict[int, list[list[float]]] = {seen: [] for seen in (*contexts, *full)}
        counts: dict[int, KVCounts] = {}
        for number in range(wanted.rounds):
            for count, rounds in prompts.items():
                yield f"round {number + 1} of {wanted.rounds}: a prompt of {count:,} tokens"
                rounds.append([first_token_s(engine, self._ids(count))])
            for seen, rounds in points.items():
                yield f"round {number + 1} of {wanted.rounds}: {wanted.steps} steps after {seen:,} tokens"
                times, counts[seen] = step_times(engine, held, seen, wanted.steps, wanted.seed + number)
                rounds.append(times)
        self.prompts = [Prompt(count, Spread.of(rounds)) for count, rounds in prompts.items()]
        measured = {seen: self._point(counts[seen], rounds) for seen, rounds in points.items()}
        self.decoding = [measured[seen] for seen in contexts]
        self.drift = [measured[seen] for seen in full]

    @property
    def drift_share(self) -> float | None:
        """The growth of the median step from the first point to the last, as a share; None without two points."""
        if len(self.drift) < 2:
            return None
        return self.drift[-1].step.median_s / self.drift[0].step.median_s - 1.0

    def _ids(self, count: int) -> tuple[int, ...]:
        return random_ids(count, self.engine.loaded.shape.vocab, self.workload.seed)

    def _full(self, drift: tuple[int, ...]) -> tuple[int, ...]:
        """The points with all slots full; earlier ones are replaced by the one at which the last slot is taken."""
        slots = max((layer.num_slots for layer in self.engine.cache.layers.values()), default=1)
        return tuple(dict.fromkeys(max(seen, slots) for seen in drift))

    def _possible(self, name: str, counts: tuple[int, ...], room: int) -> tuple[int, ...]:
        """The counts that leave `room` tokens before the conversation ends; the others go to `left_out`."""
        end = longest_conversation(self.engine)
        if end is None:
            return tuple(dict.fromkeys(counts))
        late = [count for count in counts if count + room > end]
        if late:
            said = ", ".join(f"{count:,}" for count in late)
            self.left_out.append(f"{name} {said}: a conversation ends after {end:,} tokens here")
        return tuple(count for count in dict.fromkeys(counts) if count not in late)

    def _point(self, counts: KVCounts, rounds: list[list[float]]) -> Point:
        weights = weights_read_bytes(self.engine.loaded)
        read = None if weights is None else weights + counts.live_bytes
        return Point(counts.tokens_seen, counts.tokens_kept, Spread.of(rounds), read)
