"""The files that a batch reads and writes, by name: none of them may overwrite another, whatever it is called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kvlite.errors import OutputError, UsageError
from kvlite.options import BatchOptions

STDIN = "-"
META, TORN, PARTIAL, RESCUED = ".kvlite-meta.json", ".torn", ".partial", ".rescued"
"""Endings of the names of the files beside an output."""


def output_name(options: BatchOptions, *, is_terminal: bool) -> str | None:
    """The output as the user names it, else named after the input on a terminal; None is stdout.

    Raises UsageError where it is to be compressed, OutputError where it has no name.
    """
    if options.output is not None and unpacked_name(options.output) != options.output:
        plain = unpacked_name(options.output)
        raise UsageError(
            f"records are appended to {options.output} one by one, so it cannot be compressed; give -o {plain}, "
            f"or -o - and a pipe: | gzip > {options.output}"
        )
    if options.output is not None and not Path(options.output).name:
        raise OutputError(f"cannot write to {options.output}: it is a folder; give -o a file's name")
    if options.output is not None or not is_terminal or options.input == STDIN:
        return None if options.output == STDIN else options.output
    return f"{Path(unpacked_name(options.input)).stem}.out.{'txt' if options.out_format == 'text' else 'jsonl'}"


def unpacked_name(name: str) -> str:
    """The name of what a file holds that is compressed by gzip; any other's is its own."""
    return name[:-3] if name.lower().endswith(".gz") else name


def beside(output: Path, ending: str) -> Path:
    """The file that belongs to an output and is called as it is, with `ending`."""
    return output.with_name(f"{output.name}{ending}")


def refuse_shared_files(options: BatchOptions, report: str, *, is_terminal: bool) -> None:
    """Raise UsageError where two of input, output, summary and run record are one file, also through links.

    `report` is a path, `auto` or `none`. A name that no file can have is refused too.
    """
    taken: list[tuple[str, Path]] = []
    for what, path in _files(options, report, is_terminal=is_terminal):
        for other, held in taken:
            if _is_same(path, held):
                raise UsageError(f"{what} ({path}) is {other}; give it another file")
        taken.append((what, path))


def _files(options: BatchOptions, report: str, *, is_terminal: bool) -> Iterator[tuple[str, Path]]:
    stdin, stdout = Path("/dev/fd/0"), Path("/dev/fd/1")
    yield "the input", Path(options.input) if options.input != STDIN else stdin
    name = output_name(options, is_terminal=is_terminal)
    yield "the output", Path(name) if name is not None else stdout
    if name is not None:
        for ending in (META, f"{META}{PARTIAL}", TORN, PARTIAL, RESCUED):
            yield "a file that belongs to the output", beside(Path(os.path.realpath(name)), ending)
    if options.summary is not None:
        yield "the file of --summary", Path(options.summary)
    if report not in ("auto", "none"):
        yield "the file of --report", Path(report)


def _is_same(one: Path, other: Path) -> bool:
    """True where both are one regular file, or will be."""
    try:
        if one.exists() and other.exists():
            return one.is_file() and one.samefile(other)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}; give another name") from None
    return os.path.realpath(one) == os.path.realpath(other)
