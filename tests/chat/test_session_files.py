import os
import stat

import pytest

from kvlite.chat.session_files import MAX_NAME, SessionFolder
from kvlite.errors import OutputError, UsageError
from tests.chat.messages import message

TALK = [message("system", "brief"), message("user", "hi"), message("assistant", "hello\n☺", "stop")]


@pytest.fixture
def folder(tmp_path):
    return SessionFolder(tmp_path / "sessions")


def test_a_saved_session_loads_as_it_was(folder):
    folder.file("a").save(TALK, "demo")
    assert folder.file("a").load() == TALK


def test_a_longer_and_a_shorter_session_replace_the_file(folder):
    file = folder.file("a")
    file.save(TALK, "demo")
    longer = [*TALK, message("user", "more"), message("assistant", "ok", "length")]
    file.save(longer, "demo")
    assert folder.file("a").load() == longer
    file.save(TALK, "demo")
    assert folder.file("a").load() == TALK
    assert [path.name for path in folder.folder.iterdir()] == ["a.jsonl"]


def test_a_loaded_session_goes_on_in_its_file(folder):
    folder.file("a").save(TALK, "demo")
    file = folder.file("a")
    file.save([*file.load(), message("user", "x")], "demo")
    assert len(folder.file("a").load()) == 4


def test_a_last_line_without_its_end_is_kept_and_one_cut_short_is_named(folder):
    file = folder.file("a")
    file.save(TALK, "demo")
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-1])
    again = folder.file("a")
    assert again.load() == TALK
    again.save(TALK, "demo")
    assert file.path.read_bytes()[-1:] == b"\n" and folder.file("a").load() == TALK
    file.path.write_bytes(whole[:-4])
    with pytest.raises(UsageError, match="line 4: not JSON; mend or delete the line"):
        folder.file("a").load()


@pytest.mark.parametrize(
    "line",
    ["not json", '{"role":"user"}', '{"role":"god","content":"x"}', '{"role":"user","content":5}', "[]", "null"],
)
def test_a_malformed_line_is_named(folder, line):
    file = folder.file("a")
    file.save(TALK, "demo")
    file.path.write_text(file.path.read_text() + line + "\n")
    with pytest.raises(UsageError, match="line 5"):
        folder.file("a").load()


def test_a_later_format_is_refused(folder):
    file = folder.file("a")
    file.save(TALK, "demo")
    file.path.write_text('{"format":"kvlite.session/9"}\n')
    with pytest.raises(UsageError, match="session/9"):
        folder.file("a").load()


def test_non_utf8_and_missing_and_empty_files_are_refused(folder):
    with pytest.raises(UsageError, match="no session named a"):
        folder.file("a").load()
    folder.folder.mkdir()
    folder.file("a").path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(UsageError, match="line 1"):
        folder.file("a").load()
    folder.file("a").path.write_bytes(b"")
    with pytest.raises(UsageError, match="empty"):
        folder.file("a").load()


@pytest.mark.parametrize("name", ["a", "Notes_2.b-c", "x" * MAX_NAME, "_", "-c"])
def test_plain_names_are_accepted(folder, name):
    assert folder.file(name).path == folder.folder / f"{name}.jsonl"


BAD_NAMES = [
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "../a",
    "/etc/passwd",
    "a\\b",
    "a..b",
    "a.",
    "a b",
    "a\0b",
    "a\n",
    "é",
    "~",
]
RESERVED_NAMES = ["CON", "nul.txt", "Com1", "a:b", "x" * (MAX_NAME + 1)]


@pytest.mark.parametrize("name", BAD_NAMES + RESERVED_NAMES)
def test_names_that_could_leave_the_folder_are_refused(folder, name):
    with pytest.raises(UsageError, match="no session name"):
        folder.file(name)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    folder.folder.mkdir()
    (tmp_path / "secret.jsonl").write_text("{}\n")
    folder.folder.joinpath("a.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UsageError, match="link"):
        folder.file("a")


def test_files_are_readable_by_their_owner_only(folder):
    folder.file("a").save(TALK, "demo")
    assert stat.S_IMODE(folder.file("a").path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.folder.stat().st_mode) == 0o700


def test_the_latest_comes_first_and_other_files_are_passed_over(folder):
    for age, name in enumerate(["new", "older", "oldest"]):
        folder.file(name).save(TALK, "demo")
        os.utime(folder.file(name).path, (10**9 - age, 10**9 - age))
    folder.folder.joinpath("note.txt").write_text("x")
    folder.folder.joinpath(".hidden.jsonl").write_text("x")
    assert [info.name for info in folder.saved()] == ["new", "older", "oldest"]


def test_an_absent_folder_holds_no_sessions(folder):
    assert folder.saved() == []


def test_new_files_never_share_a_name(folder):
    first = folder.new_file()
    first.save(TALK, "demo")
    assert folder.new_file().name != first.name


def test_a_session_changed_by_another_process_is_not_overwritten(folder):
    mine, other = folder.file("a"), folder.file("a")
    mine.save(TALK, "demo")
    other.load()
    other.save([*TALK, message("user", "theirs")], "demo")
    with pytest.raises(OutputError, match="another process"):
        mine.save([*TALK, message("user", "mine")], "demo")
    assert folder.file("a").load()[-1]["content"] == "theirs"


def test_a_session_that_another_process_began_is_not_overwritten(folder):
    mine, other = folder.file("a"), folder.file("a")
    other.save(TALK, "demo")
    with pytest.raises(OutputError, match="another process"):
        mine.save([message("user", "mine")], "demo")
    assert folder.file("a").load() == TALK


def test_an_unwritable_folder_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be saved"):
        SessionFolder(tmp_path / "file" / "sessions").file("a").save(TALK, "demo")


def test_a_save_that_fails_leaves_the_file_as_it_was(folder, monkeypatch):
    file = folder.file("a")
    file.save(TALK, "demo")
    longer = [*TALK, message("user", "more")]

    def full(handle, mode, encoding):
        os.close(handle)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kvlite.record.store.os.fdopen", full)
        with pytest.raises(OutputError, match="No space"):
            file.save(longer, "demo")
    assert folder.file("a").load() == TALK
    assert [path.name for path in folder.folder.iterdir()] == ["a.jsonl"]
    file.save(longer, "demo")
    assert folder.file("a").load() == longer


def test_lone_surrogates_in_a_file_become_readable(folder):
    folder.folder.mkdir()
    folder.file("a").path.write_text('{"role":"user","content":"a\\ud800b"}\n')
    assert folder.file("a").load() == [message("user", "a?b")]
