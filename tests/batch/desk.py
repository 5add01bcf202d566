"""A batch on a model of arithmetic, in a folder of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kvlite.batch.batch import Batch
from kvlite.console import Console
from kvlite.engine.request import Request
from kvlite.errors import KvliteError
from kvlite.memory.format import slot_format
from kvlite.options import AnswerOptions, BatchOptions, ModelOptions
from kvlite.record.recorder import Recorder


class Desk:
    """A folder, a model and what a batch on them says.

    `stop_after` says what happens once that many tokens were asked for: something is raised, or done to the engine.
    """

    def __init__(self, folder: Path, text: Any, new_engine: Any, new_rows: Any) -> None:
        self.folder, self.text, self.new_engine, self.new_rows = folder, text, new_engine, new_rows
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        self.identity = "org/m@sha"
        self.window: int | None = None
        self.identity_error: KvliteError | None = None
        self.open_error: KvliteError | None = None
        self.opened = 0
        self.chosen: list[str | None] = []
        self.stop_after: tuple[int, BaseException | Callable[[Any], None]] | None = None

    @property
    def out(self) -> Path:
        return self.folder / "out.jsonl"

    def run(self, **asked: Any) -> None:
        Batch(*self.arguments(**asked), Recorder("batch", (), report="none")).run()

    def arguments(
        self, *, max_tokens: int | None = None, min_tokens: int | None = None, as_json: bool = False, **asked: Any
    ) -> tuple[BatchOptions, AnswerOptions, Callable[[str | None], Any], Console]:
        options = {"input": str(self.folder / "in.jsonl"), "output": str(self.out), "progress": "none"} | asked
        console = Console(as_json=as_json, stdout=self.stdout, stderr=self.stderr)
        return (
            BatchOptions(**options),
            AnswerOptions(max_tokens=max_tokens, min_tokens=min_tokens),
            self.choose,
            console,
        )

    def choose(self, from_lines: str | None) -> Any:
        self.chosen.append(from_lines)
        return SimpleNamespace(
            required=from_lines or "default",
            spec=SimpleNamespace(options=ModelOptions(), stored=None, budget=None),
            params={"kv_policy": "window"},
            identity=self._identify,
            open=self._open,
            plan=lambda: (self.text, self._fit()),
        )

    def _fit(self) -> Any:
        plan = self.new_engine(rows=2).plan
        return SimpleNamespace(
            shape=SimpleNamespace(window=self.window),
            spec=SimpleNamespace(slot_format=slot_format("int8", "float32")),
            rows=lambda budget, slots, lines: plan,
        )

    def _identify(self) -> str:
        if self.identity_error is not None:
            raise self.identity_error
        return self.identity

    def _open(self, recorder: Recorder) -> Any:
        if self.open_error is not None:
            raise self.open_error
        self.opened += 1
        started = 0

        def fails(request: Request) -> None:
            nonlocal started
            started += 1
            if self.stop_after and started > self.stop_after[0]:
                happens = self.stop_after[1]
                if isinstance(happens, BaseException):
                    raise happens
                happens(engine)

        engine = self.new_engine(rows=2, fails=fails)
        loaded = SimpleNamespace(window=self.window)
        model = SimpleNamespace(name="org/m@sha7", text=self.text, generation={}, loaded=loaded)
        return self.new_rows(engine, model)

    def ask(self, *prompts: str) -> None:
        (self.folder / "in.jsonl").write_text("".join(f"{json.dumps({'id': p, 'prompt': p})}\n" for p in prompts))

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    @property
    def said(self) -> str:
        return self.stderr.getvalue()
