"""The cache on disk, found where huggingface_hub keeps it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvlite.catalog.snapshots import cache_root, cached_repos, cached_snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/x/cache"},
        {"HF_HOME": "/x/hf", "XDG_CACHE_HOME": "/x/cache"},
        {"HF_HOME": "~/hf"},
        {"HF_HUB_CACHE": "$HF_HOME/other", "HF_HOME": "/x/hf"},
        {"HUGGINGFACE_HUB_CACHE": "/x/old", "HF_HOME": "/x/hf"},
    ],
)
def test_cache_is_where_huggingface_hub_has_it(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert str(cache_root()) == theirs.stdout.strip()


def test_snapshot_of_a_branch_and_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert cached_repos() == [] and cached_snapshot("org/name", None) is None
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    assert cached_repos() == ["org/name"]
    assert cached_snapshot("org/name", COMMIT) == snapshot
    assert cached_snapshot("org/name", None) is None
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert cached_snapshot("org/name", None) == snapshot


@pytest.mark.parametrize("revision", ["../../../etc/passwd", "/etc/passwd", "..", "x" * 300])
def test_revision_cannot_lead_out_of_the_cache(revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--org--name" / "refs").mkdir(parents=True)
    assert cached_snapshot("org/name", revision) is None
