"""Results, kept as they come in a file of JSON lines that is only ever appended to, one per item or text.

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

_FIRST_SPAN = 64


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """One question: its kind, how many tokens back its `value` was told, and how it was answered.

    `right`: all tokens of the value were the likeliest, given the right answer so far; `nll` is minus their mean log
    probability in nats. `guessed`: the same without having read the item. `free`: the model's own `answer` has the
    value, None where it was not asked for one.
    """

    kind: str
    back: int
    right: bool
    nll: float
    guessed: bool
    value: str
    free: bool | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """An item of `tokens` tokens, with its longest question, about which everything was asked."""

    number: int
    tokens: int
    outcomes: tuple[QuestionResult, ...]


def span_of(tokens: int) -> tuple[int, int]:
    """The distances that one of `tokens` is counted with, above the first and up to the second (64, 128, 256, ...)."""
    upto = max(_FIRST_SPAN, 1 << (tokens - 1).bit_length())
    return (0 if upto == _FIRST_SPAN else upto // 2), upto


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
"""The key of one result: model, suite, variant, number of the item."""

_RESULT: TypeAdapter[Result] = TypeAdapter(Result)


class Journal:
    """The results in `path`, or only in memory where it is None. Raises UsageError where the file is something else."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._results: dict[str, Result] = {}
        self._is_torn = False
        if path is not None and path.exists():
            if not path.is_file():
                raise UsageError(f"{path} is no file that can be gone on with; give another --journal")
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
