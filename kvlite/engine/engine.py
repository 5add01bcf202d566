"""The one generation loop: ids in, tokens out. Chat is a batch of one. Knows nothing of text or screens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import chain

import torch

from kvlite.cache.cache import SlotCache
from kvlite.cache.policy import Policy
from kvlite.engine.decode_graphs import DecodeGraphs, GraphRecorder
from kvlite.engine.decoding import Decoder, Drawn
from kvlite.engine.device_memory import PeakMemory
from kvlite.engine.feeder_maker import FeederMaker
from kvlite.engine.kernels import KernelChoice
from kvlite.engine.request import Completion, FinishReason, Logprobs, Request, Timing, Token
from kvlite.engine.row import Row
from kvlite.engine.rows import Rows
from kvlite.engine.sampling import INVALID
from kvlite.engine.scheduler import Feed, next_feed
from kvlite.engine.speculation import Speculation
from kvlite.errors import ContextFull, KvliteError, NumericError, UsageError
from kvlite.memory.format import SlotFormat
from kvlite.memory.plan import CachePlan
from kvlite.models.loaded import LoadedModel
from kvlite.options import Speculate


class Engine:
    """Feeds requests through `loaded` with a cache of `plan.rows` rows that never exceeds `plan.budget_bytes`.

    A lone row goes from the slots of `plan` to those of `plan.then` as it grows.
    `stored` is what a slot holds, as planned. `on_full` says what happens when no slot is free: `evict`, `stop` the
    answer, or make it an `error`; None leaves it to the policy. `kernels` is one of `kvlite_kernels.choice.KERNELS`, or
    chooses between them; where Triton's fail in mid-answer, what was said is read anew in torch, and `warn` told.
    Decode steps are replayed from what `recorder` makes of them where that proves exact and, unless they
    `must_capture`, faster. Else, or where it fails in mid-answer, steps are eager and `step` says why; `warn` does too,
    unless nobody asked. For a row that decodes alone tokens are drafted as `speculate` says, and verified. Raises
    UsageError where a choice cannot be honoured, DoesNotFit or OutOfMemory where the cache cannot be allocated.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        plan: CachePlan,
        policy: Policy,
        stored: SlotFormat,
        on_full: str | None = None,
        kernels: str | KernelChoice = "auto",
        recorder: GraphRecorder | None = None,
        must_capture: bool = False,
        warn: Callable[[str], None] = lambda text: None,
        speculate: Speculate = "off",
    ) -> None:
        if loaded.state is not None and plan.rows > 1:
            raise UsageError(f"{loaded.shape.family} models carry state and run one row at a time, not {plan.rows}")
        self.loaded = loaded
        self.peak_memory = PeakMemory(loaded.device)
        self.kernels = KernelChoice(kernels) if isinstance(kernels, str) else kernels
        obstacle = "" if loaded.state is None else f"{loaded.shape.family} models carry state that cannot go back"
        self.decoder = Decoder(Speculation(speculate, obstacle), self.peak_memory, loaded.device)
        warn = cache(warn)  # of each thing once
        maker = FeederMaker(loaded, self.kernels, recorder, must_capture, warn)
        self.rows = Rows(maker, plan, policy, stored, on_full, self.peak_memory)
        if self.cache.backend.name != "torch":
            obstacle = obstacle or "only torch attends to several tokens as to each alone"
        if obstacle and isinstance(speculate, int):
            warn(f"--speculate {speculate}: tokens come one by one: {obstacle}")

    @property
    def cache(self) -> SlotCache:
        """The slots that its rows have now."""
        return self.rows.cache

    @property
    def plan(self) -> CachePlan:
        """The plan of `cache`."""
        return self.rows.plan

    @property
    def step(self) -> str:
        """The way decode steps run: `captured`, or `eager` and, where capturing was asked for, the obstacle."""
        return self.rows.feeder.step

    @property
    def graphs(self) -> DecodeGraphs | None:
        """The graphs that decode steps are replayed from; None where they are eager."""
        return self.rows.feeder.graphs

    @property
    def speculation(self) -> Speculation:
        """The way tokens are drafted."""
        return self.decoder.speculation

    def run(self, requests: Iterable[Request | None]) -> Iterator[Token | Completion]:
        """Serve requests as rows come free, yielding each one's tokens and then its Completion; they interleave.

        A source that has nothing ready yields None: the rows at work go on, and it is asked again after a step. A
        request that cannot be served ends with a Completion that carries the error. Closing the iterator stops.
        """
        waiting = iter(requests)
        exhausted, feed = False, None
        try:
            while True:
                while not exhausted and any(row.job is None for row in self.rows):
                    try:
                        request = next(waiting)
                    except StopIteration:
                        exhausted = True
                        break
                    if request is None:
                        break
                    yield from self._admit(request)
                yield from self._ended()
                self.rows.prefixes.share(self.rows)
                self._hear_all()
                feed = next_feed(self.rows, feed, may_share=self.rows.feeder.may_share)
                if feed is not None:
                    self.rows.make_room(feed.rows.start, feed.counts[0])
                    yield from self._advance(feed)
                elif exhausted:
                    return
        finally:
            for row in self.rows:
                row.job = None

    def score(self, ids: Sequence[tuple[int, ...]], last: int | None = None) -> torch.Tensor:
        """Feed the first rows the next ids of texts that are given, and give the logits behind each id [n, T, V].

        With `last` only those behind so many of the last ids are computed. Shorter pieces stand on the right; a row
        without ids is left as it is. A cache that evicts takes at most `plan.chunk` ids each. Raises ContextFull where
        one that does not is full.
        """
        assert all(row.job is None for row in self.rows), "scoring and answering take turns"
        if self.rows.on_full != "evict" and any(len(piece) > self.cache.room(row) for row, piece in enumerate(ids)):
            raise ContextFull(
                f"a text is longer than the {self.plan.slots} slots, and policy {self.rows.policy.name} is full"
            )
        assert self.rows.on_full != "evict" or max(map(len, ids)) <= self.plan.chunk, (
            "re-rotation leaves room for one chunk"
        )
        width, rows = max(map(len, ids)), self.rows[: len(ids)]
        with self.peak_memory.phase("prefill"):
            self.rows.make_room(0, len(ids[0]))
            for row, piece in zip(rows, ids, strict=True):
                if piece:
                    self.rows.feeder.hear_before(row, len(piece))
            for row, piece in zip(rows, ids, strict=True):
                row.said.extend(piece)
            return self.rows.feeder.forward(Feed(slice(0, len(ids)), tuple(ids)), rows, last or width)

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request before its next token; what it has answered stays part of the conversation."""
        for row in self.rows:
            job = row.job  # another thread may end it meanwhile
            if job is not None and job.request.id == request_id:
                job.ending = reason

    def _admit(self, request: Request) -> Iterator[Completion]:
        if request.row is None:
            index = next(row.index for row in self.rows if row.job is None)
            self.rows.reset(index)
        elif self.rows[request.row].job is None:
            index = request.row
        else:
            raise UsageError(f"row {request.row} is busy; wait for its answer")
        row = self.rows[index]
        error, counts = self.rows.limits.refusal(row, request), self.rows.counts(row.index)
        if error is None:
            self.rows.make_room(index, len(request.ids) + (row.unfed is not None))
            evicts = row.needs(request) > min(self.plan.fewest, row.seen + self.cache.room(index))
            echoes = self.rows.feeder.echoes and (evicts or request.row is not None)  # else nothing comes of it
            chunk = self.plan.chunk if evicts or echoes else self.plan.most_chunk
            row.begin(request, chunk, counts.tokens_evicted, echoes=echoes)
            if row.job is not None and request.row is None:
                ends = request.prefixes
                if evicts:  # where chunks end decides what goes
                    ends = tuple(dict.fromkeys(end - end % chunk for end in ends if end >= chunk))
                row.job.marks, row.job.evicts = self.rows.prefixes.marks(ends, len(request.ids)), evicts
                self.rows.prefixes.start(row, self.rows)
        else:
            yield Completion(
                request.id, (), FinishReason.CANCELLED, len(request.ids), 0, counts, Timing(0.0, 0.0, 0.0), error
            )

    def _ended(self) -> Iterator[Completion]:
        """Complete the requests that were cancelled, and those that have no room for another token."""
        for row in self.rows:
            if row.job is None:
                continue
            if row.job.ending is not None:
                yield self._complete(row, row.job.ending)
            elif row.unfed is not None and (end := self.rows.limits.end(row)) is not None:
                error = end if self.rows.on_full == "error" else None
                yield replace(self._complete(row, FinishReason.LENGTH, error), cut_short=str(end))

    def _advance(self, feed: Feed) -> Iterator[Token | Completion]:
        """Make one forward pass; then a token for every row whose prompt is through."""
        rows = self.rows[feed.rows]
        if feed.beside is not None:
            rows = [*rows, *self.rows[feed.beside.rows]]
        if draft := self.decoder.draft(self.rows.feeder, feed, rows):
            with closing(self.decoder.verified(self.rows.feeder, rows[0], draft)) as verified:
                first = self.rows.guarded(lambda: next(verified, None))  # after a fault it has none, nor fed any
                for token, probable in chain([first] if first else [], verified):
                    yield from self._take(rows[0], token, probable)
            return
        for i, token, probable in self._drawn(feed, rows):
            yield from self._take(rows[i], token, probable)

    def _drawn(self, feed: Feed, rows: Sequence[Row]) -> list[Drawn]:
        """Draw with the kernels that there are; where Triton's fail, once more with torch."""

        def draw() -> list[Drawn]:
            return self.decoder.drawn(self.rows.feeder, feed, rows)

        return self.rows.guarded(draw, lambda drawn: all(token != INVALID for _, token, _ in drawn))

    def _hear_all(self) -> None:
        """Let the policy hear what came to rows at work, where that is due."""

        def hear() -> None:
            for row in self.rows:
                if row.job is not None and row.job.echoes:
                    self.rows.feeder.hear_before(row, max(1, row.next_chunk))

        if self.rows.feeder.echoes:
            self.rows.guarded(hear)

    def _take(self, row: Row, token: int, known: Logprobs | None) -> Iterator[Token | Completion]:
        """Record a sampled token; a stop id or the last allowed token ends the request."""
        job = row.job
        assert job is not None
        job.first_token_at = job.first_token_at or time.monotonic()
        if token == INVALID:
            error = NumericError("the model computed no numbers; give --dtype float32 or bfloat16")
            yield self._complete(row, FinishReason.CANCELLED, error)
            return
        if token in job.request.stop_ids:
            yield self._complete(row, FinishReason.STOP)
            return
        row.take(token, known)
        yield Token(job.request.id, len(job.answer) - 1, token)
        if row.job is not job or job.ending is not None:
            return
        if job.guide is not None and job.guide.is_over:
            yield self._complete(row, FinishReason.STOP)
        elif len(job.answer) == job.request.max_tokens:
            yield self._complete(row, FinishReason.LENGTH)

    def _complete(self, row: Row, reason: FinishReason, error: KvliteError | None = None) -> Completion:
        job = row.job
        assert job is not None
        row.job = None
        counts = self.rows.counts(row.index)
        return Completion(
            request_id=job.request.id,
            ids=tuple(job.answer),
            finish_reason=reason,
            prompt_tokens=len(job.request.ids),
            evicted=counts.tokens_evicted - job.evicted_before,
            kv=counts,
            timing=job.timing(),
            error=error or (None if job.guide is None else job.guide.error),
            cached_tokens=job.cached,
            logprobs=tuple(job.logprobs),
            drafted=job.drafted,
            accepted=job.accepted,
        )
