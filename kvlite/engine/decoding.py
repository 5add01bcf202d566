"""From logits to tokens: one drawn for each row, or several that were drafted and prove right."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

import torch

from kvlite.engine.device_memory import PeakMemory
from kvlite.engine.feeding import Feeder
from kvlite.engine.logprobs import logprobs
from kvlite.engine.request import Logprobs
from kvlite.engine.row import Row
from kvlite.engine.sampling import Draw, sample
from kvlite.engine.scheduler import Feed
from kvlite.engine.speculation import Speculation
from kvlite.engine.verification import Verification

Drawn = tuple[int, int, Logprobs | None]  # number of the row in a feed, token, its log probabilities if asked for


class Decoder:
    """Draws the next tokens of rows; those of a row that decodes alone are drafted as `speculation` says.

    What it computes counts for `peak_memory`, and raises OutOfMemory where memory is refused.
    """

    def __init__(self, speculation: Speculation, peak_memory: PeakMemory, device: torch.device) -> None:
        self.speculation, self._peak_memory = speculation, peak_memory
        self._clock = time.thread_time if device.type == "cpu" else time.perf_counter  # load slows no chunk down

    def drawn(self, feeder: Feeder, feed: Feed, rows: Sequence[Row]) -> list[Drawn]:
        """Feed the ids; draw a token for each row of `feed` whose prompt is through."""
        with self._peak_memory.phase("decode" if feed.decodes else "prefill"):
            return self._drawn(feeder, feed, rows)

    def draft(self, feeder: Feeder, feed: Feed, rows: Sequence[Row]) -> tuple[int, ...]:
        """Draft what may follow the id that is to be fed; empty where nothing is, and `drawn` goes on."""
        return self.speculation.draft(rows[0], _most_drafted(feeder, rows[0])) if self._may_draft(feeder, feed) else ()

    def verified(self, feeder: Feeder, row: Row, draft: tuple[int, ...]) -> Generator[tuple[int, Logprobs | None]]:
        """Feed a row its unfed id and what may follow; as long as what is drawn is what was drafted, the rest counts.

        Each token is drawn as after a single step, once the row has taken the one before. Whatever ends this, the row
        is then as if no more had been fed.
        """
        job, started = row.job, self._clock()
        assert job is not None
        chunk = Verification(feeder.cache, row, draft, feeder.loaded.device)
        try:
            with self._peak_memory.phase("decode"):
                logits = chunk.logits(feeder.loaded)
            if self.speculation.tries(row, draft, logits, self._since(started, logits)):
                return
            job.drafted += len(draft)
            for number, expected in enumerate((*draft, None)):
                chunk.keep_next()
                here = logits[number : number + 1]
                ids = sample(here, [Draw.of(row)])
                job.accepted += ids[0] == expected
                (known,) = logprobs(here, ids, [row.logprobs_asked])
                yield ids[0], known
                if row.job is not job or job.ending is not None or ids[0] != expected:
                    return
        finally:
            chunk.drop_rest()
            self.speculation.verified(draft, chunk.kept - 1)

    def _drawn(self, feeder: Feeder, feed: Feed, rows: Sequence[Row]) -> list[Drawn]:
        started = self._clock()
        logits, fed = feeder.forward(feed, rows)[:, -1], feed.ids
        if feed.beside is not None:
            fed += feed.beside.ids
        is_timed = self._may_draft(feeder, feed)
        seconds = self._since(started, logits) if is_timed and logits.device.type == "cpu" else 0.0
        ready = [i for i, row in enumerate(rows) if row.job is not None and fed[i] and not row.job.prompt]
        draws = [Draw.of(rows[i]) for i in ready]
        logits = logits[ready] if len(ready) < len(rows) else logits
        ids = sample(logits, draws) if ready else []
        known = logprobs(logits, ids, [rows[i].logprobs_asked for i in ready])
        if is_timed:
            seconds = seconds or self._clock() - started  # a GPU is waited for once, where tokens are read
            self.speculation.stepped(rows[0], ids[0], logits[0], seconds)
        return list(zip(ready, ids, known, strict=True))

    def _may_draft(self, feeder: Feeder, feed: Feed) -> bool:
        """True where one row decodes alone, in torch: other kernels may fail, and what they read anew is no chunk."""
        is_alone = feed.decodes and feed.rows.stop - feed.rows.start == 1
        return is_alone and self.speculation.is_on and feeder.cache.backend.name == "torch"

    def _since(self, started: float, logits: torch.Tensor) -> float:
        """The seconds from `started` until these logits are there."""
        logits[0, 0].item()  # waits for the device
        return self._clock() - started


def _most_drafted(feeder: Feeder, row: Row) -> int:
    """Count the ids that may be drafted for a row that is to be fed: none that its answer or slots would not take."""
    job = row.job
    assert job is not None
    limits = [feeder.limits.most_at_once(row) - 1]
    if job.request.max_tokens is not None:
        limits.append(job.request.max_tokens - len(job.answer) - 1)
    if feeder.echoes and job.echoes:
        limits.append(feeder.until_heard(row) - 1)
    return min(limits)
