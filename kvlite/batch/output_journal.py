"""Open the output of a batch, and go on in it: the output file is the journal of its batch.

The file's records tell which lines are done; a sidecar `<output>.kvlite-meta.json` holds the settings they were made
with. A last line cut short by a crash is moved into `<output>.torn`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvlite.batch.item import Json
from kvlite.batch.output import LockedFile, Output, StdoutLines, open_output, writing_to
from kvlite.batch.paths import META, PARTIAL, TORN, beside, output_name
from kvlite.batch.records import read_record
from kvlite.console import Console
from kvlite.errors import UsageError
from kvlite.options import BatchOptions

_BLOCK_BYTES = 2**16
_WAYS_OUT = "--overwrite starts over, --force-resume continues all the same"


@dataclass(frozen=True, slots=True)
class Done:
    """The lines that have their record, as marks; `set_aside` are failed records whose lines run again, by mark."""

    marks: set[bytes] = field(default_factory=set)
    ok: int = 0
    failed: int = 0
    set_aside: dict[bytes, str] = field(default_factory=dict)


class OutputJournal:
    """The journal of one locked output file.

    Its sidecar is an object: `input_sha256` (null for a pipe), `model`, `params` and `version`.
    """

    def __init__(self, file: LockedFile) -> None:
        self._file = file
        self._sidecar, self._torn = beside(file.path, META), beside(file.path, TORN)

    def start_over(self) -> None:
        """Delete all records."""
        self._file.truncate(0)
        self._sidecar.unlink(missing_ok=True)

    def drop_torn_line(self) -> int:
        """Move a last line without its newline into the `.torn` copy; returns its bytes."""
        whole = self._whole_bytes()
        if whole == self._file.size:
            return 0
        with self._file.path.open("rb") as file:
            file.seek(whole)
            last = file.read()
        with writing_to(self._torn), self._torn.open("ab") as torn:
            torn.write(last + b"\n")
        self._file.truncate(whole)
        return len(last)

    def _whole_bytes(self) -> int:
        """Count the bytes of whole lines, from the end of the file."""
        end = self._file.size
        with self._file.path.open("rb") as file:
            while end:
                start = max(0, end - _BLOCK_BYTES)
                file.seek(start)
                if (place := file.read(end - start).rfind(b"\n")) >= 0:
                    return start + place + 1
                end = start
        return 0

    def check(self, meta: Json) -> None:
        """Raise UsageError where the records were made with other settings, or there is no sidecar to tell."""
        if not self._file.size:
            return
        try:
            earlier = json.loads(self._sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = None
        if not isinstance(earlier, dict):
            raise UsageError(f"{self._file.path} is not empty and has no readable {self._sidecar.name}; {_WAYS_OUT}")
        if difference := _difference(earlier, meta):
            raise UsageError(f"{self._file.path} was written {difference}; {_WAYS_OUT}")

    def keep(self, meta: Json) -> None:
        """Write the sidecar for the records to come. Raises OutputError."""
        partial = beside(self._sidecar, PARTIAL)
        with writing_to(self._sidecar):
            try:
                with partial.open("w", encoding="utf-8") as file:
                    file.write(f"{json.dumps(meta)}\n")
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(self._sidecar)
            except OSError:
                partial.unlink(missing_ok=True)
                raise

    def set_failed_aside(self) -> Done:
        """Take the records of failed lines out of the file, so that these lines run again, and return the rest."""
        marks, failed = set[bytes](), dict[bytes, str]()
        for line, mark, is_failed in self._records():
            if is_failed:
                failed[mark] = line.decode().removesuffix("\n")
            else:
                marks.add(mark)
        if failed:
            self._file.replace(line for line, _, is_failed in self._records() if not is_failed)
        return Done(marks, len(marks), 0, failed)

    def done(self) -> Done:
        """Read which lines have their record, leaving out a torn one.

        Raises UsageError on a line that is no record, or is one of a line that has one.
        """
        marks, ok, failed = set(), 0, 0
        for number, (_, mark, is_failed) in enumerate(self._records(), 1):
            if mark in marks:
                raise UsageError(
                    f"{self._file.path} line {number} is another record of a line that has one; {self._mend}"
                )
            marks.add(mark)
            failed += is_failed
            ok += not is_failed
        return Done(marks, ok, failed)

    @property
    def _mend(self) -> str:
        return f"keep all others with: kvlite batch --repair {shlex.quote(str(self._file.path))}, or give another -o"

    def _records(self) -> Iterator[tuple[bytes, bytes, bool]]:
        with self._file.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                recorded = read_record(line)
                if recorded is None:
                    raise UsageError(f"{self._file.path} line {number} is no batch record; {self._mend}")
                yield line, *recorded


def _difference(earlier: Json, meta: Json) -> str | None:
    """Describe the first difference from an earlier sidecar; None where only the version differs."""
    inputs = (earlier.get("input_sha256"), meta["input_sha256"])
    if None not in inputs and inputs[0] != inputs[1]:
        return "from other input"
    before, now = _settings(earlier), _settings(json.loads(json.dumps(meta)))
    for name in dict.fromkeys((*now, *before)):
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            return f"with {name} {'unset' if was is None else was}, not {'unset' if is_now is None else is_now}"
    return None


def _settings(meta: Json) -> dict[str, object]:
    params = meta.get("params")
    return {"model": meta.get("model"), **(params if isinstance(params, dict) else {})}


def open_destination(options: BatchOptions, console: Console) -> Output:
    """Open the output of a batch: stdout where it is redirected or asked for, else a file, locked.

    Raises UsageError and OutputError.
    """
    name = output_name(options, is_terminal=console.is_terminal)
    if name is not None and options.output is None:
        console.note(f"the records go to {name}")
    output: Output = StdoutLines(console.line) if name is None else open_output(Path(name))
    if options.retry_errors and options.overwrite:
        raise UsageError("--overwrite leaves no failed records for --retry-errors; leave out one of them")
    if options.retry_errors and not is_journal(options, output):
        raise UsageError("--retry-errors needs the output file whose failed records are to run again; give -o")
    return output


def is_journal(options: BatchOptions, output: Output | None) -> bool:
    """True where the output tells which lines have their record."""
    return isinstance(output, LockedFile) and options.out_format != "text"


def resume(options: BatchOptions, meta: Json, output: Output, console: Console) -> Done:
    """Find the lines that have their record already. Raises UsageError where the output cannot be continued."""
    if not isinstance(output, LockedFile):
        return Done()
    journal = OutputJournal(output)
    if not is_journal(options, output):
        if output.size and not options.overwrite:
            raise UsageError(
                f"{output.path} is not empty, and text output cannot be resumed; give --overwrite or another -o"
            )
        journal.start_over()
        return Done()
    if output.size and not (options.resume or options.overwrite):
        raise UsageError(f"{output.path} has records; give --resume, --overwrite or another -o")
    if options.overwrite:
        journal.start_over()
    elif not options.force_resume:
        journal.check(meta)
    done = journal.done()
    if torn := journal.drop_torn_line():
        console.warn(f"{output.path} ended in {torn} bytes of a torn line, now in {output.path.name}.torn")
    journal.keep(meta)
    if not options.retry_errors or not done.failed:
        return done
    kept = journal.set_failed_aside()
    console.note(f"up to {len(kept.set_aside)} failed records run again")
    return kept
