"""A worker between its two threads: what orders say reaches the rows, whenever they come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvlite.batch.item import Item
from kvlite.batch.workers import worker
from kvlite.batch.workers.messages import Order, Setup
from kvlite.batch.workers.worker import Worker
from kvlite.errors import UsageError
from kvlite.options import AnswerOptions, BatchOptions, ModelOptions
from kvlite.record.measure import versions


def test_memory_is_divided_as_the_first_order_with_lines_says(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[int] = []

    class Model:
        def __init__(self, *args: Any) -> None:
            pass

        def load(self) -> Any:
            return SimpleNamespace(name="m", loaded=SimpleNamespace(device=SimpleNamespace(type="cpu")))

        def identity(self) -> str:
            return "m"

        def rows(self, loaded: Any, opened: Any, sharers: int) -> Any:
            shared.append(sharers)
            raise UsageError("enough")

    monkeypatch.setattr(worker, "Model", Model)
    monkeypatch.setattr(worker, "RunSpec", SimpleNamespace(of=lambda options: None))
    monkeypatch.setattr(worker, "TELL_AFTER_S", 0.0)
    asked: dict[str, Any] = {
        "options": ModelOptions(),
        "answer": AnswerOptions(),
        "batch": BatchOptions(input="-"),
    }
    one = Worker(Setup(**asked, batch_size="auto", required=None, version=versions()["kvlite"]))
    orders = [Order(sharers=1), Order((Item(0, 1, "a", prompt="x"),), 5, 3), Order(to_come=5, sharers=1)]
    for order in orders:  # the last one comes before the rows are made
        one.exchange(order)
    one.work()
    assert shared == [3]
    assert str(one.exchange(Order()).error) == "enough"
