"""Records on disk: whole or not there, found by name, never outside their folder, the newest 200."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvlite.errors import UsageError
from kvlite.record.schema import RunRecord
from kvlite.record.store import KEEP, RunRecords, new_run_id, read_record, write_whole

NOW = datetime(2025, 11, 20, 20, 11, 30, tzinfo=UTC)


def record(run_id: str) -> RunRecord:
    return RunRecord(run_id=run_id, command="run", started=NOW, ended=NOW, exit_code=0)


def save(runs: RunRecords, run_id: str, saved_s: int) -> Path:
    path = runs.save(record(run_id))
    os.utime(path, (saved_s, saved_s))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> RunRecords:
    return RunRecords(tmp_path / "runs")


def test_ids_sort_by_time_and_differ() -> None:
    first, second = new_run_id(NOW), new_run_id(NOW)
    assert first.startswith("20251120-201130-")
    assert first != second


def test_the_folder_is_in_the_state_folder(own_home: Path) -> None:
    assert RunRecords().folder.is_relative_to(own_home)
    assert RunRecords().folder.parts[-2:] == ("kvlite", "runs")


def test_what_is_saved_loads_by_id_prefix_last_and_path(runs: RunRecords) -> None:
    path = runs.save(record("2025-abc"))
    for name in ("2025-abc", "2025-a", "last", str(path)):
        assert runs.load(name) == record("2025-abc")


def test_only_the_user_can_read_a_record(runs: RunRecords) -> None:
    path = runs.save(record("a"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_last_is_the_run_that_ended_last(runs: RunRecords) -> None:
    save(runs, "2-began-later", 100)
    save(runs, "1-ended-later", 200)
    assert [path.stem for path in runs.paths()] == ["1-ended-later", "2-began-later"]
    assert runs.load("last").run_id == "1-ended-later"


def test_a_whole_id_is_preferred_to_longer_ones(runs: RunRecords) -> None:
    runs.save(record("ab"))
    runs.save(record("abc"))
    assert runs.find("ab").stem == "ab"
    with pytest.raises(UsageError, match="begins 2 runs"):
        runs.find("a")


def test_the_oldest_beyond_the_newest_200_go(runs: RunRecords) -> None:
    for number in range(KEEP + 3):
        save(runs, f"run-{number:03}", number)
    kept = [path.stem for path in runs.paths()]
    assert len(kept) == KEEP == 200
    assert kept[0] == "run-202"
    assert kept[-1] == "run-003"


def test_what_is_no_record_in_the_folder_is_left_alone(runs: RunRecords) -> None:
    runs.save(record("a"))
    for name in ("notes.txt", ".a.tmp", "..json", "A B.json"):
        (runs.folder / name).write_text("x")
    (runs.folder / "folder.json").mkdir()
    assert [path.name for path in runs.paths()] == ["a.json"]


def test_no_runs_yet_says_what_to_do(runs: RunRecords) -> None:
    with pytest.raises(UsageError, match="use `kvlite run`, `chat` or `batch` first"):
        runs.load("last")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "..", "", ".", "a\0b", "a*", "\udcff", "x" * 300])
def test_a_name_cannot_leave_the_folder(runs: RunRecords, name: str) -> None:
    runs.save(record("a"))
    outside = runs.folder.parent / "a.json"
    outside.write_text("{}")
    with pytest.raises(UsageError, match="no run is called"):
        runs.remove(name)
    assert outside.exists()
    assert len(runs.paths()) == 1


def test_remove_deletes_one_run(runs: RunRecords) -> None:
    runs.save(record("a1"))
    runs.save(record("b1"))
    assert runs.remove("a") == "a1"
    assert [path.stem for path in runs.paths()] == ["b1"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema":"other/1"}', b"null", b"[" * 100_000], ids=str
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.json is not a run record") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/nowhere/x.json", "missing.json", "/"])
def test_a_file_that_cannot_be_read_is_named(runs: RunRecords, name: str) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        runs.load(name)


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    write_whole("a", path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_whole("b", path)
    assert path.read_text() == "a"
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]
