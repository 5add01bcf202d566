"""A run record as Markdown: a verdict and pipe tables."""

from __future__ import annotations

import re

from kvlite.record.schema import RunRecord
from kvlite.record.view import Table, run_line, tables, verdict

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def report_markdown(record: RunRecord) -> str:
    """The whole report, ending in a newline."""
    head = (f"# {_text(verdict(record))}", _text(run_line(record)))
    return "\n\n".join((*head, *(table_markdown(table) for table in tables(record)))) + "\n"


def table_markdown(table: Table) -> str:
    """One pipe table, its note below."""
    lines = [_row(table.columns), "|" + " --- |" * len(table.columns), *(_row(row) for row in table.rows)]
    return "\n".join(lines) + (f"\n\n{_text(table.note)}" if table.note else "")


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(_text(cell) for cell in cells) + " |"


def _text(text: str) -> str:
    """`text` as it is: nothing in it is markup and nothing breaks the line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
