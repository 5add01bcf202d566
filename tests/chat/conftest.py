"""A scripted engine and a text of one id per character, so that a chat runs without weights or a tokenizer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from kvlite.engine.request import Completion, FinishReason, Request, Timing, Token
from kvlite.errors import BudgetTooSmall
from kvlite.memory.counts import KVCounts

END = 0  # ends a turn


@dataclass(frozen=True)
class FakeSnapshot:
    ids: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class FakePiece:
    text: str
    thinking: bool = False


@dataclass(frozen=True)
class FakeEncoded:
    ids: tuple[int, ...]
    pins: tuple[tuple[int, int], ...] = ()


class FakeDecoder:
    """Decodes at once; text between < and > is thinking, a stop string ends the answer."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop, self.stopped, self.text, self.thinking = stop, False, "", ""
        self.is_thinking = False

    def follow(self, token_id: int) -> None:
        pass

    def push(self, token_id: int) -> list[FakePiece]:
        character = chr(token_id)
        if character in "<>":
            self.is_thinking = character == "<"
            return []
        if self.is_thinking:
            self.thinking += character
        else:
            self.text += character
        for stop in self.stop:
            if stop in self.text:
                self.text, self.stopped = self.text.partition(stop)[0], True
        return [] if self.stopped or character in "".join(self.stop) else [FakePiece(character, self.is_thinking)]

    def finish(self) -> list[FakePiece]:
        return []


class FakeText:
    """Renders `u:question|a:` as characters."""

    stop_ids = frozenset({END})
    think = "auto"
    thinks_anyway = None

    def conversation(self, messages: list[dict[str, str]]) -> FakeEncoded:
        rendered = "".join(f"{message['role'][0]}:{message['content']}|" for message in messages)
        pins = ((0, len(messages[0]["content"]) + 3),) if messages[0]["role"] == "system" else ()
        return FakeEncoded(tuple(map(ord, rendered + "a:")), pins)

    def next_turn(self, user: str, *, ended: bool, thinking: bool = False) -> FakeEncoded:
        end = "\0" if ended else ">" if thinking else ""
        return FakeEncoded(tuple(map(ord, f"{end}|u:{user}|a:")))

    def answer(self, prompt: FakeEncoded, stop: tuple[str, ...], min_tokens: int = 0) -> FakeDecoder:
        return FakeDecoder(stop)


@dataclass
class FakeEngine:
    """An engine and its one row, of `slots` tokens: answers what the script says and remembers all it was asked."""

    slots: int = 10_000
    script: deque[str | Exception] = field(default_factory=deque)
    requests: list[Request] = field(default_factory=list)
    fed: list[int] = field(default_factory=list)
    num_restored: int = 0
    snapshot_bytes: int = 100
    cut_short: str | None = None
    pinned: list[tuple[int, int]] = field(default_factory=list)
    _cancelled: dict[str, FinishReason] = field(default_factory=dict)

    @property
    def rows(self) -> FakeEngine:
        return self

    def run(self, requests: list[Request]) -> Iterator[Token | Completion]:
        (request,) = requests
        assert request.row == 0
        before = self.counts(0).tokens_evicted
        self.requests.append(request)
        self.fed += request.ids
        says = self.script.popleft() if self.script else "ok"
        answer = says if isinstance(says, str) else ""
        ids: list[int] = []
        reason = FinishReason.STOP
        for index, character in enumerate(answer):
            if request.id in self._cancelled:
                break
            if request.max_tokens is not None and index >= request.max_tokens:
                reason = FinishReason.LENGTH
                break
            ids.append(ord(character))
            self.fed.append(ord(character))
            yield Token(request.id, index, ord(character))
        reason = self._cancelled.get(request.id, reason)
        error = says if isinstance(says, Exception) else None
        timing = Timing(0.25, 0.25 + 0.1 * len(ids), 10.0)
        kv = self.counts(0)
        evicted = kv.tokens_evicted - before
        yield Completion(request.id, tuple(ids), reason, len(request.ids), evicted, kv, timing, error, self.cut_short)

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        self._cancelled[request_id] = reason

    def said(self, row: int) -> list[int]:
        return self.fed

    def take_back(self, row: int) -> int | None:
        return self.fed.pop() if self.fed else None

    def pin(self, row: int, spans: list[tuple[int, int]], *, unpins: bool = False) -> None:
        self.pinned = [span for span in self.pinned if span not in spans] + ([] if unpins else [*spans])

    def check_pins(self, pins: tuple[tuple[int, int], ...]) -> None:
        if sum(end - start for start, end in pins) > self.slots:
            raise BudgetTooSmall("pinned")

    def snapshot(self, row: int) -> FakeSnapshot:
        return FakeSnapshot(tuple(self.fed), self.snapshot_bytes)

    def restore(self, row: int, snapshot: FakeSnapshot) -> None:
        self.num_restored += 1
        self.fed = list(snapshot.ids)

    def reset(self, row: int) -> None:
        self.fed = []

    def counts(self, row: int | None) -> KVCounts:
        kept = min(self.slots, len(self.fed))
        seen = len(self.fed)
        return KVCounts(
            10 * self.slots, 10 * self.slots, 10 * kept, 10 * kept, seen, kept, seen - kept, "window", "float32"
        )

    @property
    def fed_text(self) -> str:
        return "".join(map(chr, self.fed))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def text() -> FakeText:
    return FakeText()
