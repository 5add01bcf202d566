"""Results, kept as they come in a file of JSON lines that is only ever appended to, one per conversation or text.

A line names everything that decides its result, so one file may hold many models, suites and variants, and another run
finds what it has in common with earlier ones. A last line cut short is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from kvlite.errors import OutputError, UsageError


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """One question: its answer, its kind, and how far back the answer was said, in turns and in tokens.

    `tokens` lie between the end of the message that said it and the end of the question, with the model's own answers.
    """

    turn: int
    right: bool
    turns: int
    tokens: int
    kind: str
    steps: int
    answer: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A conversation that was held: `tokens` were fed in all, `unreached` questions came after the model's window."""

    number: int
    tokens: int
    unreached: int
    outcomes: tuple[QuestionResult, ...]


@dataclass(slots=True)
class Span:
    """Sums over the scored tokens of a text that have more than `over` and at most `upto` tokens before them.

    `nll` is minus the log probability of the text, `kl` the divergence of the bounded cache's next-token distribution
    from the full cache's, both in nats; `agreed` counts equal first choices.
    """

    over: int
    upto: int
    tokens: int = 0
    nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """A text that was fed token by token and scored (teacher forcing): `tokens` in all, and its spans."""

    number: int
    tokens: int
    spans: tuple[Span, ...]


Result = Answered | Scored
Unit = Mapping[str, object]
"""The key of one result: model, suite, variant, number of the conversation."""

_RESULT: TypeAdapter[Result] = TypeAdapter(Result)


class Journal:
    """The results in `path`, or only in memory where it is None. Raises UsageError where the file is something else."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._results: dict[str, Result] = {}
        self._is_torn = False
        if path is not None and path.exists():
            self._read(path)

    def find(self, unit: Unit) -> Result | None:
        """The result of `unit`, None where there is none yet."""
        return self._results.get(_mark(unit))

    def keep(self, unit: Unit, result: Result) -> None:
        """Append a result. Raises OutputError where the file cannot be written."""
        self._results[_mark(unit)] = result
        if self.path is None:
            return
        line = json.dumps({"unit": unit, "result": asdict(result)}, ensure_ascii=False)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n" if self._is_torn else f"{line}\n")
        except OSError as error:
            raise OutputError(f"cannot write to {self.path}: {error.strerror}") from error
        self._is_torn = False

    def _read(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        *lines, torn = text.split("\n")
        self._is_torn = bool(torn)
        for number, line in enumerate(filter(None, lines), 1):
            try:
                record = json.loads(line)
                self._results[_mark(record["unit"])] = _RESULT.validate_python(record["result"])
            except (ValueError, TypeError, KeyError) as error:
                if line.startswith('{"unit": '):  # cut short by an earlier crash, then gone on behind it
                    continue
                raise UsageError(f"{path} line {number} is no result of kvlite eval; give another --journal") from error


def _mark(unit: Unit) -> str:
    return json.dumps(unit, sort_keys=True)
