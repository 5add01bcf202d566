"""Findings about a model at loading, kept so that the next start need not find it out.

A verdict depends on weights, versions, dtype and device. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from kvlite.record.findings import Circumstances, Findings

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
class Verdicts(Findings[Verdict]):
    """The folder of verdicts."""

    folder: Path = field(default_factory=lambda: user_state_path("kvlite", appauthor=False) / "verdicts")
    again: bool = False

    def _read(self, told: Mapping[str, Any]) -> Verdict:
        return Verdict.read(told)

    def add_effect(self, about: Circumstances, stored: str, nats: float, agreement: float) -> None:
        """Add what slots of the format `stored` do to a verdict that is kept already."""
        if (verdict := self.find(about)) is not None:
            self.keep(about, replace(verdict, effects={**verdict.effects, stored: (nats, agreement)}))


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


def code_hash() -> str:
    """A hash of the code that computes, wherever it is installed: kvlite's own files, the versions of the libraries."""
    found = sha256(f"{version('torch')} {version('transformers')}".encode())
    for package in ("kvlite", "kvlite_kernels"):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _texts(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list):
        raise TypeError(f"{found!r} is no list")
    return tuple(map(str, found))


def _rotation(facts: Any) -> RotationFacts:
    table, direction, start, interleaved = facts
    return int(table), int(direction), int(start), bool(interleaved)
