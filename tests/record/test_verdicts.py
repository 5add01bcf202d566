"""Verdicts on disk: found under the circumstances they were found under, and under no others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kvlite.record import findings, verdicts
from kvlite.record.verdicts import Verdict, Verdicts, code_stamp

ABOUT = {"model": "a", "dtype": "float32"}
FOUND = Verdict({0: (0, 1, 0, False), 1: None}, ("norm",), ("mlp: no",), {"int4": (0.5, 0.9)}, "then")


@pytest.fixture
def store(tmp_path: Path) -> Verdicts:
    return Verdicts(tmp_path / "state" / "verdicts")


@pytest.mark.parametrize("verdict", [FOUND, Verdict(None, (), (), when="then")])
def test_what_is_kept_is_found(store: Verdicts, verdict: Verdict) -> None:
    assert store.find(ABOUT) is None
    assert store.keep(ABOUT, verdict)
    assert store.find(ABOUT) == verdict
    assert store.known() == [(ABOUT, verdict)]


@pytest.mark.parametrize("other", [{**ABOUT, "dtype": "bfloat16"}, {"model": "a"}, {**ABOUT, "torch": "2"}])
def test_other_circumstances_are_another_verdict(store: Verdicts, other: dict[str, str]) -> None:
    store.keep(ABOUT, FOUND)
    assert store.find(other) is None
    (file,) = store.folder.iterdir()
    file.rename(store._path(other))  # somebody else's file under that name
    assert store.find(other) is None


def test_effects_of_slot_formats_are_added(store: Verdicts) -> None:
    store.keep(ABOUT, FOUND)
    store.add_effect(ABOUT, "int8", 0.1, 1.0)
    found = store.find(ABOUT)
    assert found is not None
    assert found.effects == {"int4": (0.5, 0.9), "int8": (0.1, 1.0)}


NESTED = ("rotations", "fused", "refused", "effects")


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff", b"[]", b"7", b"{}", b"[" * 9999, "format", "about", "verdict", *NESTED]
)
def test_a_damaged_or_foreign_file_counts_for_nothing(store: Verdicts, damage: bytes | str) -> None:
    store.keep(ABOUT, FOUND)
    (file,) = store.folder.iterdir()
    if isinstance(damage, str):
        told = json.loads(file.read_bytes())
        (told["verdict"] if damage in NESTED else told)[damage] = 7
        damage = json.dumps(told).encode()
    file.write_bytes(damage)
    assert store.find(ABOUT) is None
    assert store.known() == []
    assert store.keep(ABOUT, FOUND)
    assert store.find(ABOUT) == FOUND


def test_the_newest_are_kept(store: Verdicts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "KEEP", 3)
    for number in range(5):
        store.keep({"model": str(number)}, FOUND)
        os.utime(store._path({"model": str(number)}), (number, number))
    assert [about["model"] for about, _ in store.known()] == ["4", "3", "2"]


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Verdicts(tmp_path / "file" / "verdicts")
    assert not store.keep(ABOUT, FOUND)
    assert store.find(ABOUT) is None
    assert store.known() == []


def test_asked_again_nothing_is_found(store: Verdicts) -> None:
    store.keep(ABOUT, FOUND)
    assert Verdicts(store.folder, again=True).find(ABOUT) is None


def test_the_stamp_changes_with_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "kvlite_kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("a")
    found = verdicts.find_spec

    def here(name: str) -> object:
        from importlib.util import spec_from_file_location

        return spec_from_file_location(name, package / "__init__.py") if name == "kvlite_kernels" else found(name)

    monkeypatch.setattr(verdicts, "find_spec", here)
    before = code_stamp()
    assert code_stamp() == before
    os.utime(package / "part.py", (1, 1))
    assert code_stamp() != before
