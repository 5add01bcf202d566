"""`kvlite profile` on the built-in model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvlite.cli import main
from kvlite.profiles.profile import read_profile
from kvlite.profiles.store import Profiles


def test_a_profile_is_measured_kept_drawn_and_exported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    assert main(["profile", "demo", "--again", "--device", "cpu", "--export", str(file)]) == 0
    said = capsys.readouterr()
    assert "head 1  " in said.out and "measured on 3," in said.out
    exported = read_profile(file)
    kept = Profiles().of_weights(exported.fingerprint)
    assert kept == exported and kept.models[0].startswith("demo@")
    assert main(["profile", "demo", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text())


def test_an_export_that_cannot_be_written_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["profile", "demo", "--export", str(tmp_path / "no" / "file.json")]) == 2
    assert "no such folder" in capsys.readouterr().err
