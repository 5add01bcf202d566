"""Results kept as they come: a file of JSON lines that is only ever appended to, one line per conversation or text.

A line names everything that decides its result, so one file may hold many models, suites and variants, and another run
finds what it has in common with earlier ones. A last line cut short is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvlite.errors import OutputError, UsageError

Unit = Mapping[str, object]
"""The key of one result: model, suite, variant, number of the conversation."""


class Journal:
    """The results in `path`, or only in memory where it is None. Raises UsageError where the file is something else."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._results: dict[str, dict[str, Any]] = {}
        self._is_torn = False
        if path is not None and path.exists():
            self._read(path)

    def __len__(self) -> int:
        return len(self._results)

    def find(self, unit: Unit) -> dict[str, Any] | None:
        """The result of `unit`, None where there is none yet."""
        return self._results.get(_mark(unit))

    def keep(self, unit: Unit, result: dict[str, Any]) -> None:
        """Append a result. Raises OutputError where the file cannot be written."""
        self._results[_mark(unit)] = result
        if self.path is None:
            return
        line = json.dumps({"unit": unit, "result": result}, ensure_ascii=False)
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
                self._results[_mark(record["unit"])] = record["result"]
            except (ValueError, TypeError, KeyError) as error:
                if line.startswith('{"unit": '):  # cut short by an earlier crash, then gone on behind it
                    continue
                raise UsageError(f"{path} line {number} is no result of kvlite eval; give another --journal") from error


def _mark(unit: Unit) -> str:
    return json.dumps(unit, sort_keys=True)
