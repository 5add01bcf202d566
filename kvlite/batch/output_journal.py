"""The output file as the journal of its batch, from which an interrupted batch resumes.

The file's records tell which lines are done; a sidecar `<output>.kvlite-meta.json` holds the settings they were made
with. A last line cut short by a crash is moved into `<output>.torn`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from kvlite.batch.item import Json
from kvlite.batch.output import LockedFile
from kvlite.batch.records import Recorded, read_record
from kvlite.errors import OutputError, UsageError

_WAYS_OUT = "--overwrite starts over, --force-resume continues all the same"
_TAIL_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Meta:
    """The input, model and settings that records were made with; `input_sha256` is None for a pipe."""

    input_sha256: str | None
    model: str
    params: Json
    version: str

    def to_line(self) -> str:
        """Write the one line of the sidecar."""
        params = json.dumps(self.params, sort_keys=True)
        return json.dumps({**asdict(self), "params_sha256": sha256(params.encode()).hexdigest()})

    def difference(self, earlier: Json) -> str | None:
        """Describe the first difference from an earlier sidecar; None where only the version differs."""
        before, now = _flat(earlier), _flat(json.loads(self.to_line()))
        if earlier.get("input_sha256") is None or self.input_sha256 is None:
            before.pop("input", None)
            now.pop("input", None)
        for name in dict.fromkeys((*now, *before)):
            if before.get(name) != now.get(name):
                was, is_now = (meta.get(name) if meta.get(name) is not None else "unset" for meta in (before, now))
                return "from other input" if name == "input" else f"with {name} {was}, not {is_now}"
        return None


@dataclass(frozen=True, slots=True)
class Done:
    """The lines that have their record, as marks; `set_aside` are failed records whose lines run again, by mark."""

    marks: set[bytes] = field(default_factory=set)
    ok: int = 0
    failed: int = 0
    set_aside: dict[bytes, str] = field(default_factory=dict)


class OutputJournal:
    """The journal of one locked output file."""

    def __init__(self, file: LockedFile) -> None:
        self._file = file
        self._sidecar = file.path.with_name(f"{file.path.name}.kvlite-meta.json")
        self._torn = file.path.with_name(f"{file.path.name}.torn")

    def start_over(self) -> None:
        """Delete all records."""
        self._file.truncate(0)
        self._sidecar.unlink(missing_ok=True)

    def drop_torn_line(self) -> int:
        """Move a last line without its newline into the `.torn` copy; returns its bytes."""
        end = self._file.size
        whole = _end_of_whole_lines(self._file.path, end)
        if whole == end:
            return 0
        with self._file.path.open("rb") as file, self._torn.open("ab") as torn:
            file.seek(whole)
            while block := file.read(_TAIL_BLOCK):
                torn.write(block)
            torn.write(b"\n")
        self._file.truncate(whole)
        return end - whole

    def check(self, meta: Meta) -> None:
        """Raise UsageError where the records were made with other settings, or there is no sidecar to tell."""
        if not self._file.size:
            return
        earlier = self._read_sidecar()
        if earlier is None:
            raise UsageError(f"{self._file.path} is not empty and has no readable {self._sidecar.name}; {_WAYS_OUT}")
        if difference := meta.difference(earlier):
            raise UsageError(f"{self._file.path} was written {difference}; {_WAYS_OUT}")

    def keep(self, meta: Meta) -> None:
        """Write the sidecar for the records to come. Raises OutputError."""
        partial = self._sidecar.with_name(f"{self._sidecar.name}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(f"{meta.to_line()}\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._sidecar)
        except OSError as error:
            raise OutputError(f"cannot write to {self._sidecar}: {error.strerror}") from error

    def set_failed_aside(self) -> Done:
        """Take the records of failed lines out of the file, so that these lines run again, and return the rest."""
        failed = {
            recorded.mark: line.decode().removesuffix("\n") for line, recorded in self._records() if recorded.is_failed
        }
        if failed:
            self._file.replace(line for line, recorded in self._records() if not recorded.is_failed)
        left = self.done()
        return replace(left, set_aside={mark: line for mark, line in failed.items() if mark not in left.marks})

    def done(self) -> Done:
        """Read which lines have their record, leaving out a torn one. Raises UsageError on a line that is no record."""
        marks, ok, failed = set(), 0, 0
        for _, recorded in self._records():
            marks.add(recorded.mark)
            failed += recorded.is_failed
            ok += not recorded.is_failed
        return Done(marks, ok, failed)

    def _records(self) -> Iterator[tuple[bytes, Recorded]]:
        with self._file.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                recorded = read_record(line)
                if recorded is None:
                    path = self._file.path
                    raise UsageError(f"{path} line {number} is no batch record; give another -o, or --overwrite it")
                yield line, recorded

    def _read_sidecar(self) -> Json | None:
        try:
            value = json.loads(self._sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None


def _flat(meta: Json) -> dict[str, object]:
    params = meta.get("params")
    given = params if isinstance(params, dict) else {}
    return {"input": meta.get("input_sha256"), "model": meta.get("model"), **given}


def _end_of_whole_lines(path: Path, end: int) -> int:
    """Count the bytes up to and including the last newline."""
    with path.open("rb") as file:
        while end > 0:
            start = max(0, end - _TAIL_BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
