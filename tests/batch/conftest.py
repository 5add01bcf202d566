"""A model of arithmetic instead of weights: prompts are their characters, answers are their prompts in capitals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvlite.batch.item import Item
from kvlite.engine.request import Completion, FinishReason, Request, Timing, Token
from kvlite.errors import OutOfMemory, UsageError
from kvlite.memory.counts import KVCounts
from tests.batch.desk import Desk

COUNTS = KVCounts(1000, 900, 10, 20, 5, 4, 1, "window", "float32")
END = 0


class FakeAnswer:
    """The characters of an answer, cut at a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.text, self.thinking, self.stopped, self.is_thinking = "", "", False, False
        self._stop = stop

    def push(self, token_id: int) -> list[object]:
        self.text += chr(token_id)
        for stop in self._stop:
            if stop in self.text:
                self.text, self.stopped = self.text.partition(stop)[0], True
        return []

    def finish(self) -> list[object]:
        return []


@dataclass
class FakeText:
    """Ids are characters; messages are joined by newlines."""

    stop_ids: frozenset[int] = frozenset({END})
    generation: dict[str, Any] = field(default_factory=dict)

    def prompt(self, text: str, *, system: str | None = None) -> Any:
        return self.raw(f"{system}\n{text}" if system else text)

    def conversation(self, messages: Sequence[Any], *, template_kwargs: Any = None, continues: Any = None) -> Any:
        if messages[-1]["content"] == "unrenderable":
            raise UsageError("the template refuses it")
        if continues and messages[-1]["role"] != "assistant":
            raise UsageError("continue_final_message: the last message is of the user")
        return self.raw("\n".join(message["content"] for message in messages))

    def raw(self, prompt: str) -> Any:
        return SimpleNamespace(ids=tuple(map(ord, prompt)), pins=((0, 1),), stop=())

    def answer(self, prompt: Any, stop: Sequence[str] = (), min_tokens: int = 0) -> FakeAnswer:
        return FakeAnswer(stop)


class FakeCache:
    """So many rows of a FakeEngine."""

    def __init__(self, rows: int) -> None:
        self._rows, self.on_full = rows, "evict"

    def __len__(self) -> int:
        return self._rows

    def counts(self, row: int = 0) -> KVCounts:
        return COUNTS


class FakeEngine:
    """Serves requests as the engine does, one token of every row a step; `fails` may answer with an error.

    A prompt with `!` in it is too large for the device. `loads` are the rows of each step.
    """

    def __init__(self, rows: int = 2, fails: Callable[[Request], Exception | None] = lambda request: None) -> None:
        self.rows = FakeCache(rows)
        self.plan = SimpleNamespace(
            rows=rows, budget_bytes=1000, reserved_bytes=900, slots=50, fewest=50, capped_by=None, policy_state_bytes=0
        )
        self.pulled: list[Request] = []
        self.most_at_once = 0
        self.loads: list[int] = []
        self.out_of_memory_above: int | None = None
        self.cancelled: dict[str, FinishReason] = {}
        self._fails = fails

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        self.cancelled[request_id] = reason

    def run(self, requests: Iterable[Request | None]) -> Iterator[Token | Completion]:
        waiting, active = iter(requests), dict[str, tuple[Request, list[int]]]()
        exhausted = False
        while True:
            while not exhausted and len(active) < len(self.rows):
                try:
                    request = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                if request is None:
                    break
                self.pulled.append(request)
                active[request.id] = (request, [])
            if not active:
                assert exhausted, "nothing runs, so nothing is to be waited for here"
                return
            self.most_at_once = max(self.most_at_once, len(active))
            self.loads.append(len(active))
            most = self.out_of_memory_above
            if (most is not None and len(active) > most) or any("!" in map(chr, r.ids) for r, _ in active.values()):
                raise OutOfMemory("the device is full")
            for request_id, (request, answer) in list(active.items()):
                for event in self._step(request, answer):
                    if isinstance(event, Completion):
                        del active[request_id]
                    yield event

    def _step(self, request: Request, answer: list[int]) -> Iterator[Token | Completion]:
        error = self._fails(request)
        if error is not None:
            yield self._completion(request, answer, FinishReason.CANCELLED, error)
        elif request.id in self.cancelled:
            yield self._completion(request, answer, self.cancelled.pop(request.id))
        elif len(answer) == len(request.ids):
            yield self._completion(request, answer, FinishReason.STOP)
        elif len(answer) == request.max_tokens:
            yield self._completion(request, answer, FinishReason.LENGTH)
        else:
            answer.append(ord(chr(request.ids[len(answer)]).upper()[:1]))
            yield Token(request.id, len(answer) - 1, answer[-1])

    def _completion(
        self, request: Request, answer: list[int], reason: FinishReason, error: Exception | None = None
    ) -> Completion:
        timing = Timing(0.1, 0.2, 10.0)
        return Completion(request.id, tuple(answer), reason, len(request.ids), 1, COUNTS, timing, error)


class FakeRows:
    """The rows of a FakeEngine, whatever is asked for; `fits` are the slots and lines that were."""

    def __init__(self, engine: FakeEngine, model: Any = None, most_slots: int = 10**6) -> None:
        self.engine, self.model, self.most_slots = engine, model, most_slots
        self.budget_bytes = engine.plan.budget_bytes
        self.fits: list[tuple[int, int]] = []

    def count(self, slots: int, lines: int) -> int:
        return len(self.engine.rows)

    def fit(self, slots: int, lines: int, shared: int = 0) -> None:
        self.fits.append((slots, lines))


@pytest.fixture
def new_rows() -> type[FakeRows]:
    return FakeRows


@pytest.fixture
def text() -> FakeText:
    return FakeText()


@pytest.fixture
def new_engine() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture
def new_item() -> Callable[..., Item]:
    """Items of a prompt each, the index from the key's last digits."""

    def make(prompt: str, index: int = 0, **changes: Any) -> Item:
        item = Item(index, index + 1, f"k{index}", prompt=prompt)
        return replace(item, **changes)

    return make


@pytest.fixture
def desk(tmp_path: Path, text: Any, new_engine: Any, new_rows: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr("sys.argv", ["kvlite", "batch", "in.jsonl", "-o", "my out.jsonl", "--overwrite"])
    desk = Desk(tmp_path, text, new_engine, new_rows)
    desk.ask("a", "bb", "ccc", "dd")
    return desk
