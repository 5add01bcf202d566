"""Facts that were found out at one start and hold at the next, under the same circumstances: one JSON file each.

A finding is for the circumstances it was found under, and for no others. Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, TypeVar

from kvlite.record.store import write_whole

KEEP = 100
_FORMAT = 1

Circumstances = Mapping[str, str]
"""All that a finding depends on, by name."""

Found = TypeVar("Found", bound=Any)
"""A dataclass with an ISO time `when`."""


@dataclass(frozen=True, slots=True)
class Findings(Generic[Found]):
    """A folder of findings, of which the newest are kept; `again` finds none, so that all is found out anew."""

    folder: Path
    again: bool = False

    def find(self, about: Circumstances) -> Found | None:
        """The finding under exactly these circumstances; None where there is none that can be read."""
        if self.again:
            return None
        return next((found for known, found in self._in(self._path(about)) if known == dict(about)), None)

    def keep(self, about: Circumstances, found: Found) -> bool:
        """Keep a finding, dropping the oldest beyond KEEP; False where the folder cannot be written."""
        found = replace(found, when=found.when or datetime.now(UTC).isoformat(timespec="seconds"))
        text = json.dumps({"format": _FORMAT, "about": dict(about), "verdict": asdict(found)}, indent=1)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(text + "\n", self._path(about))
            for old in self._paths()[KEEP:]:
                old.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def forget(self, about: Circumstances) -> None:
        """Drop what is known under these circumstances."""
        with suppress(OSError):
            self._path(about).unlink(missing_ok=True)

    def known(self) -> list[tuple[Circumstances, Found]]:
        """Every finding that can be read, the newest first."""
        return [found for path in self._paths() for found in self._in(path)]

    def _read(self, told: Mapping[str, Any]) -> Found:
        """The finding that JSON holds.

        Raises TypeError, ValueError, LookupError or AttributeError where it is none.
        """
        raise NotImplementedError

    def _path(self, about: Circumstances) -> Path:
        name = sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()[:24]
        return self.folder / f"{name}.json"

    def _paths(self) -> list[Path]:
        with suppress(OSError):
            return sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return []

    def _in(self, path: Path) -> list[tuple[Circumstances, Found]]:
        """One finding, or none: a file that is damaged or of another format counts for nothing."""
        with suppress(OSError, TypeError, ValueError, LookupError, AttributeError, RecursionError):
            told = json.loads(path.read_bytes())
            if told["format"] == _FORMAT:
                return [({str(k): str(v) for k, v in told["about"].items()}, self._read(told["verdict"]))]
        return []
