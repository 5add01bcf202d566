"""One sequence in flight: host integers only. The tensors of a row live in the cache."""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from dataclasses import dataclass, field, replace

from kvlite.engine.request import FinishReason, Guide, Logprobs, Request, Timing


@dataclass(slots=True)
class Job:
    """A request being served: what is left of its prompt, fed `chunk` at once, what it has answered, when.

    `marks` are the lengths of prefixes to come that are shared and copied; it `waits` while another row is fed the next
    of them. `cached` ids were fed once for several requests. Where it `echoes`, the policy hears
    it; it `evicts` where the row does not hold it whole.
    The `guide` is told each token of the answer; `logprobs` are theirs, where asked for.
    Of so many `drafted` ids `accepted` were right.
    """

    request: Request
    prompt: deque[int]
    chunk: int
    evicted_before: int
    echoes: bool = False
    evicts: bool = False
    started_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    answer: list[int] = field(default_factory=list)
    ending: FinishReason | None = None
    marks: list[int] = field(default_factory=list)
    waits: bool = False
    cached: int = 0
    guide: Guide | None = None
    logprobs: list[Logprobs] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0

    def timing(self) -> Timing:
        """Seconds so far; decoding speed counts the tokens after the first."""
        now = time.monotonic()
        first = self.first_token_at if self.first_token_at is not None else now
        after_first = len(self.answer) - 1
        speed = after_first / (now - first) if after_first > 0 and now > first else 0.0
        return Timing(first - self.started_at, now - self.started_at, speed)


@dataclass(slots=True)
class Row:
    """A conversation in one row of the cache.

    `seen` counts the tokens fed, so it is the next token's position; `rot` is the position it is rotated by. `unfed`
    is a sampled token that no forward pass has taken yet. `said` holds the ids of the conversation, `used` each once;
    the policy, if it echoes, has heard those before `echoed`.
    """

    index: int
    seen: int = 0
    rot: int = 0
    unfed: int | None = None
    peak_bytes: int = 0
    pins: tuple[tuple[int, int], ...] = ()
    used: set[int] = field(default_factory=set)
    said: array[int] = field(default_factory=lambda: array("i"))
    echoed: int = 0
    job: Job | None = None

    def copy(self) -> Row:
        """The row between two requests, which shares nothing with this one."""
        return replace(self, used=set(self.used), said=self.said[:], job=None)

    @property
    def to_come(self) -> int:
        """Count the tokens of a prompt that are not fed yet; none where a prefix will be copied, for other prompts."""
        return 0 if self.job is None or self.job.marks else len(self.job.prompt)

    def feed(self, count: int) -> None:
        """Count tokens that are fed, the unfed one first."""
        self.seen += count
        self.rot += count
        self.unfed = None if count else self.unfed

    def needs(self, request: Request) -> float:
        """Count the tokens of the conversation at the end of a request's longest answer, whose last one is not fed."""
        most = math.inf if request.max_tokens is None else request.max_tokens - 1
        return self.seen + (self.unfed is not None) + len(request.ids) + most

    def begin(self, request: Request, chunk: int, evicted: int, *, echoes: bool = False) -> None:
        """Take a request: what was sampled but not fed goes first, and its pins become positions."""
        unfed = () if self.unfed is None else (self.unfed,)
        self.pins += self.placed(request.pins)
        self.job = Job(request, deque((*unfed, *request.ids)), chunk, evicted, echoes)
        self.job.guide = None if request.guide is None else request.guide()
        self.unfed = None
        self.used.update(request.ids)
        self.said.extend(request.ids)

    def skip(self, count: int, echoed: int) -> None:
        """Note that the row holds the first `count` ids of its prompt, which were fed for another request.

        The policy has heard those before `echoed`.
        """
        assert self.job is not None
        self.seen = self.rot = self.job.cached = count
        self.job.prompt = deque(self.job.request.ids[count:])
        self.job.marks = [mark for mark in self.job.marks if mark > count]
        self.echoed = echoed

    @property
    def logprobs_asked(self) -> int | None:
        """Count the likeliest tokens whose log probabilities are asked for; None where nobody asks."""
        return None if self.job is None else self.job.request.logprobs

    @property
    def next_chunk(self) -> int:
        """Count the ids of the prompt that are fed next: up to a mark, none while the row waits."""
        job = self.job
        if job is None or job.waits:
            return 0
        return min(job.chunk, len(job.prompt), *(mark - self.seen for mark in job.marks[:1]))

    def take(self, token: int, known: Logprobs | None = None) -> None:
        """Note a sampled token of the answer, and its log probabilities where they were asked for."""
        assert self.job is not None
        self.job.answer.append(token)
        if known is not None:
            self.job.logprobs.append(known)
        if self.job.guide is not None:
            self.job.guide.accept(token)
        self.unfed = token
        self.used.add(token)
        self.said.append(token)

    def take_back(self) -> int | None:
        """Give up the id that was drawn and not fed."""
        token, self.unfed = self.unfed, None
        if token is not None:
            self.said.pop()
        return token

    def placed(self, pins: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """Spans of a request's ids as positions of the conversation."""
        offset = self.seen + (self.unfed is not None)
        return tuple((offset + start, offset + end) for start, end in pins)
