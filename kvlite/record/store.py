"""Run records on disk: one JSON file per run in the user's state folder, the newest 200 kept."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from platformdirs import user_state_path
from pydantic import ValidationError

from kvlite.errors import UsageError
from kvlite.record.schema import RunRecord

KEEP = 200
_RUN_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,63}", re.ASCII)


def new_run_id(started: datetime) -> str:
    """A name that sorts by time and no other run has: `20251120-201130-4f3a9c`."""
    return f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def write_whole(text: str, path: Path) -> None:
    """Write `text` to `path`, whole or not at all, readable by the user alone. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_record(path: Path) -> RunRecord:
    """The record in `path`. Raises UsageError when it cannot be read or is not one."""
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; `kvlite report ls` lists the runs") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise UsageError(f"{path} is not a run record ({reason}); `kvlite report ls` lists the runs") from error


@dataclass(frozen=True, slots=True)
class RunRecords:
    """The folder of records; runs are called by id, by the start of an id, or `last`."""

    folder: Path = field(default_factory=lambda: user_state_path("kvlite", appauthor=False) / "runs")

    def save(self, record: RunRecord) -> Path:
        """Keep `record`, dropping the oldest beyond 200. Raises OSError when the folder cannot be written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{record.run_id}.json"
        write_whole(f"{record.to_json()}\n", path)
        for old in self.paths()[KEEP:]:
            with suppress(OSError):  # another run is tidying too
                old.unlink()
        return path

    def paths(self) -> list[Path]:
        """The records' files, the run that ended last first; empty when there is no folder. Raises UsageError."""
        try:
            files = [path for path in self.folder.iterdir() if path.suffix == ".json" and path.is_file()]
            found = [(path.stat().st_mtime_ns, path) for path in files if _RUN_ID.fullmatch(path.stem)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(f"cannot read {self.folder}: {error.strerror}; make it readable") from error
        return [path for _, path in sorted(found, reverse=True)]

    def find(self, name: str) -> Path:
        """The file of the run called `name`. Raises UsageError when no run, or more than one, is called so."""
        paths = self.paths()
        if name == "last":
            if not paths:
                raise UsageError("no run is recorded yet; use `kvlite run`, `chat` or `batch` first")
            return paths[0]
        matching = [path for path in paths if path.stem.startswith(name)] if _RUN_ID.fullmatch(name) else []
        matching = [path for path in matching if path.stem == name] or matching
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise UsageError(
                f"'{name}' begins {len(matching)} runs; give more of the id, `kvlite report ls` lists them"
            )
        raise UsageError(f"no run is called '{name}'; `kvlite report ls` lists them, a file's name needs a / or .json")

    def load(self, name: str) -> RunRecord:
        """The record called `name`, or in the file `name` when it has a `/` or ends in `.json`. Raises UsageError."""
        is_path = "/" in name or os.sep in name or name.endswith(".json")
        return read_record(Path(name) if is_path else self.find(name))

    def remove(self, name: str) -> str:
        """Delete the run called `name` (never a path) and return its id. Raises UsageError."""
        path = self.find(name)
        try:
            path.unlink()
        except OSError as error:
            raise UsageError(f"cannot delete {path}: {error.strerror}") from error
        return path.stem
