"""Salvage the records of a damaged output file: lines cut in two or glued together, or bytes of something else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kvlite.batch.output import LockedFile, open_output, writing_to
from kvlite.batch.paths import TORN, beside
from kvlite.batch.records import read_record
from kvlite.console import Console
from kvlite.errors import UsageError

_BEGINNING = re.compile(rb'\{"(?:id|custom_id)":')


def repair(name: str, console: Console) -> None:
    """Keep the whole records of the output file `name`; the rest goes to `<name>.torn`, and what it was is said.

    Of several records of one line the first that is no failure stays. Raises UsageError and OutputError.
    """
    path = Path(name)
    with writing_to(path):
        is_file = path.is_file()
    if not is_file:
        raise UsageError(f"--repair {name}: there is no such output file")
    file = open_output(path)
    assert isinstance(file, LockedFile)
    try:
        _repair(file, console)
    finally:
        file.close()


def _repair(file: LockedFile, console: Console) -> None:
    chosen: dict[bytes, tuple[int, bool]] = {}  # the piece of each mark, and whether it is a failure
    rest: list[bytes] = []
    damaged: list[int] = []
    num_pieces = num_bytes = 0  # of pieces that are a line each
    for place, (line, piece, mark, is_failed) in enumerate(_pieces(file.path)):
        num_bytes += len(line) if line == piece + b"\n" else 0
        num_pieces += mark is not None
        if mark is None:
            rest.append(piece)
            damaged.append(place)
        elif mark not in chosen or (chosen[mark][1] and not is_failed):
            chosen[mark] = (place, is_failed)
    num_repeated = num_pieces - len(chosen)
    if file.size and not chosen:
        raise UsageError(
            f"{file.path} holds no record of a batch; --repair takes a damaged output file in place of INPUT"
        )
    if num_bytes == file.size and not damaged and not num_repeated:
        console.note(f"{file.path}: all {len(chosen)} records are whole; nothing was changed")
        return
    if rest:
        torn = beside(file.path, TORN)
        with writing_to(torn), torn.open("ab") as dropped:
            dropped.writelines(piece + b"\n" for piece in rest)
    places = {place for place, _ in chosen.values()}
    file.replace(piece + b"\n" for place, (_, piece, _, _) in enumerate(_pieces(file.path)) if place in places)
    console.note(_summary(file.path, len(chosen), len(damaged), num_repeated))


def _summary(path: Path, num_kept: int, num_damaged: int, num_repeated: int) -> str:
    parts = [f"{path}: {num_kept} records kept"]
    if num_damaged:
        parts.append(f"{num_damaged} pieces that are no records moved to {beside(path, TORN).name}")
    if num_repeated:
        parts.append(f"{num_repeated} further records of the same lines dropped")
    return "; ".join(parts)


def _pieces(path: Path) -> Iterator[tuple[bytes, bytes, bytes | None, bool]]:
    """The records that a file holds, and what lies between them: line, bytes, mark and whether it is a failure.

    The mark of what is no record is None.
    """
    with path.open("rb") as lines:
        for line in lines:
            rest = line.strip()
            while rest:
                end = next((end for end in _ends(rest) if read_record(rest[:end]) is not None), None)
                if end is not None:
                    yield line, rest[:end].strip(), *(read_record(rest[:end]) or (None, False))
                else:
                    end = next(iter(_ends(rest)))
                    yield line, rest[:end], None, False
                rest = rest[end:].strip()


def _ends(rest: bytes) -> Iterator[int]:
    """Places where a record that `rest` begins with may end: before what looks like another, or with it."""
    yield from (match.start() for match in _BEGINNING.finditer(rest, 1))
    yield len(rest)
