"""Findings about a model at loading, kept so that the next start need not find it out: one JSON file each.

A verdict is for the circumstances it was found under, and for no others: weights, versions, dtype, device. Loads no
torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from kvlite.record.store import write_whole

KEEP = 100
_FORMAT = 1

Circumstances = Mapping[str, str]
"""All that a verdict depends on, by name."""

RotationFacts = tuple[int, int, int, bool]
"""A layer's rotation: which of the model's tables of frequencies, direction, first channel, interleaved."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of the checks after loading.

    `rotations` are by layer, None where a layer has none, and None altogether where keys cannot be moved. `fused` names
    the patches in force, `refused` says why others are not. `effects` are by slot format: nats a token, and the share
    of first choices that stayed. `when` is an ISO time.
    """

    rotations: Mapping[int, RotationFacts | None] | None
    fused: tuple[str, ...]
    refused: tuple[str, ...]
    effects: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    when: str = ""

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Verdict:
        """The verdict that JSON holds. Raises TypeError, ValueError, LookupError or AttributeError where it is none."""
        rotations = found["rotations"]
        if rotations is not None:
            rotations = {int(layer): None if facts is None else _rotation(facts) for layer, facts in rotations.items()}
        effects = {str(name): (float(nats), float(kept)) for name, (nats, kept) in found["effects"].items()}
        fused, refused = (_texts(found[name]) for name in ("fused", "refused"))
        return cls(rotations, fused, refused, effects, str(found["when"]))


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The folder of verdicts, of which the newest are kept; `again` finds none, so that all is found out anew."""

    folder: Path = field(default_factory=lambda: user_state_path("kvlite", appauthor=False) / "verdicts")
    again: bool = False

    def find(self, about: Circumstances) -> Verdict | None:
        """The verdict found under exactly these circumstances; None where there is none that can be read."""
        if self.again:
            return None
        return next((verdict for known, verdict in self._read(self._path(about)) if known == dict(about)), None)

    def keep(self, about: Circumstances, verdict: Verdict) -> bool:
        """Keep a verdict, dropping the oldest beyond KEEP; False where the folder cannot be written."""
        verdict = replace(verdict, when=verdict.when or datetime.now(UTC).isoformat(timespec="seconds"))
        text = json.dumps({"format": _FORMAT, "about": dict(about), "verdict": asdict(verdict)}, indent=1)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(text + "\n", self._path(about))
            for old in self._paths()[KEEP:]:
                old.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def add_effect(self, about: Circumstances, stored: str, nats: float, agreement: float) -> None:
        """Add what slots of the format `stored` do to a verdict that is kept already."""
        if (verdict := self.find(about)) is not None:
            self.keep(about, replace(verdict, effects={**verdict.effects, stored: (nats, agreement)}))

    def known(self) -> list[tuple[Circumstances, Verdict]]:
        """Every verdict that can be read, the newest first."""
        return [found for path in self._paths() for found in self._read(path)]

    def _path(self, about: Circumstances) -> Path:
        name = sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()[:24]
        return self.folder / f"{name}.json"

    def _paths(self) -> list[Path]:
        with suppress(OSError):
            return sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return []

    def _read(self, path: Path) -> list[tuple[Circumstances, Verdict]]:
        """One verdict, or none: a file that is damaged or of another format counts for nothing."""
        with suppress(OSError, TypeError, ValueError, LookupError, AttributeError, RecursionError):
            told = json.loads(path.read_bytes())
            if told["format"] == _FORMAT:
                return [({str(k): str(v) for k, v in told["about"].items()}, Verdict.read(told["verdict"]))]
        return []


def code_stamp() -> str:
    """A hash that changes where the code that decides does: sizes and times of its files. Imports nothing of them."""
    found = sha256()
    for package in ("kvlite", "kvlite_kernels", "torch", "transformers"):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        entry = Path(spec.origin)
        paths = sorted(entry.parent.rglob("*.py")) if package.startswith("kvlite") else [entry]
        for path in paths:
            stat = path.stat()
            found.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return found.hexdigest()[:12]


def _texts(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list):
        raise TypeError(f"{found!r} is no list")
    return tuple(map(str, found))


def _rotation(facts: Any) -> RotationFacts:
    table, direction, start, interleaved = facts
    return int(table), int(direction), int(start), bool(interleaved)
