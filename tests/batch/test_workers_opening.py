"""The workers that options ask for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvlite.batch.workers import opening
from kvlite.batch.workers.messages import Setup
from kvlite.options import AnswerOptions, BatchOptions, ModelOptions

MODEL = SimpleNamespace(
    spec=SimpleNamespace(options=ModelOptions()),
    batch_size="auto",
    required=None,
    identity=lambda: "m",
    console=None,
    budget_source="default",
)


@pytest.mark.parametrize(("lines", "count"), [(None, 8), (20, 8), (3, 3), (1, 1)])
def test_there_are_no_more_workers_than_lines(monkeypatch: pytest.MonkeyPatch, lines: int | None, count: int) -> None:
    started: list[Setup] = []

    class Transport:
        def __init__(self, setups: list[Setup]) -> None:
            self.labels = [setup.options.device for setup in setups]
            self._setups = setups

        def start(self, number: int) -> None:
            started.append(self._setups[number])

    monkeypatch.setattr(opening, "Processes", Transport)
    recorder: Any = None
    model: Any = MODEL
    opening.open_workers(model, AnswerOptions(), BatchOptions(input="-", devices="cpu:8"), recorder, lines)
    assert len(started) == count
