"""`kvlite report`: what a past run took, predicted and measured; gates and comparisons over it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import typer

from kvlite.cli.invocation import Invocation
from kvlite.errors import GateFailed, OutputError, UsageError
from kvlite.flags import argument, option, read_page_name

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.record.schema import RunRecord

_BULK = {"requests", "timeline"}  # what makes a record long; `report RUN --json` has it


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    from kvlite.record.store import RunRecords

    first = ctx.params.get("words") or ()
    words = () if first else ("last", "ls", "rm")
    ids = [path.stem for path in RunRecords().paths()] if not first or first[0] == "rm" else []
    return [word for word in (*words, *ids) if word.startswith(incomplete)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """The run to show and how, or what to do with the runs that were recorded."""

    words: tuple[str, ...] = argument(
        (),
        metavar="RUN|PATH|last|ls|rm",
        complete=_complete,
        help="A run's id or its start, a record's file, or last; ls lists the runs, rm deletes some.",
    )
    html: Path | None = option(
        None, metavar="PATH", from_settings=False, parse=read_page_name, help="Write one self-contained page."
    )
    compare: str | None = option(None, metavar="RUN2", from_settings=False, help="Show what differs from RUN to RUN2.")
    fail_on: tuple[str, ...] = option(
        (),
        metavar="EXPR",
        from_settings=False,
        help="Exit 6 when true, such as 'peak_vram_bytes>6.5GB'; with --compare also 'change.FIELD>0'.",
    )


def report(asked: ReportOptions, call: Invocation) -> None:
    """Show what a past run took: predicted, measured, kept and evicted."""
    out = call.console
    flags = {"--json": out.as_json, "--html": asked.html, "--compare": asked.compare, "--fail-on": asked.fail_on}
    given = [name for name, value in flags.items() if value]
    first, *rest = asked.words or ("last",)
    if first in ("ls", "rm"):
        if refused := [name for name in given if name != "--json"]:
            raise UsageError(f"report {first} takes no {refused[0]}")
        (_list if first == "ls" else _remove)(out, rest)
        return
    if len(forms := [name for name in given if name != "--fail-on"]) > 1:
        raise UsageError(f"{forms[0]} contradicts {forms[1]}; give one of them")
    if rest:
        raise UsageError(f"one run at a time, not also {rest[0]!r}; --compare takes a second")
    _report(out, first, asked)


def _report(out: Console, run: str, asked: ReportOptions) -> None:
    from kvlite.record.fail_on import difference_table, judge, numbers_of
    from kvlite.record.store import RunRecords

    runs = RunRecords()
    record = runs.load(run)
    other = runs.load(asked.compare) if asked.compare else None
    numbers = numbers_of(record, other)
    failures = [judge(gate, numbers) for gate in asked.fail_on]  # refused, if so, before anything is printed
    if other is not None:
        out.show(difference_table(record, other))
    else:
        _show(out, record, asked.html)
    if failed := list(filter(None, failures)):
        raise GateFailed("; ".join(failed))


def _show(out: Console, record: RunRecord, html: Path | None) -> None:
    from kvlite.record.view import record_page, record_tables, run_line, verdict

    if out.as_json:
        out.json(record.model_dump(mode="json", by_alias=True))
    elif html is not None:
        try:
            html.write_text(record_page(record), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {html}: {error.strerror}") from error
        out.note(f"wrote {html}")
    else:
        out.line(verdict(record) if out.width is None else fill(verdict(record), out.width))
        out.line(run_line(record))
        for table in record_tables(record):
            out.line()
            out.show(table)


def _list(out: Console, rest: list[str]) -> None:
    from kvlite.record.store import RunRecords, read_record
    from kvlite.record.view import runs_table

    if rest:
        raise UsageError(f"report ls takes no run, not {rest[0]!r}")
    records = []
    for path in RunRecords().paths():
        try:
            records.append(read_record(path))
        except UsageError as error:  # one broken file must not hide the other runs
            out.warn(str(error))
    if out.as_json:
        out.json([record.model_dump(mode="json", by_alias=True, exclude=_BULK) for record in records])
    elif out.quiet:
        for record in records:
            out.line(record.run_id)
    else:
        out.show(runs_table(records))


def _remove(out: Console, names: list[str]) -> None:
    from kvlite.record.store import RunRecords

    if not names:
        raise UsageError("report rm needs a run; `kvlite report ls` lists them")
    runs = RunRecords()
    for name in names:
        out.note(f"removed {runs.remove(name)}")
