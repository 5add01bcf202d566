"""`kvlite sessions`: the saved chats on disk."""

import json

import pytest

from kvlite.chat.session_files import SessionFolder
from kvlite.cli import main
from tests.chat.messages import message


@pytest.fixture
def sessions(capfd):
    """Runs `kvlite sessions` over two saved ones and gives back exit code, stdout and stderr."""
    folder = SessionFolder()
    folder.file("rome").save([message("user", "Tell me of Rome"), message("assistant", "It is old.")], "demo")
    folder.file("oslo").save([message("user", "And of Oslo")], "demo")
    folder.file("rome").cache_path.write_bytes(bytes(2000))

    def sessions(*args):
        code = main(["sessions", *args])
        return (code, *capfd.readouterr())

    return sessions


def test_they_are_listed_with_their_bytes(sessions):
    code, out, err = sessions()
    assert code == 0 and "2.00 kB" in out and "Tell me of Rome" in out and "2 sessions" in err
    assert sessions("-q")[1].split() == ["oslo", "rome"]
    assert [each["cache_bytes"] for each in json.loads(sessions("--json")[1])] == [0, 2000]


def test_they_are_searched_shown_and_exported(sessions, tmp_path):
    assert sessions("search", "old", "-q")[1] == "rome\n"
    assert sessions("show", "rome")[1] == "user:\nTell me of Rome\n\nassistant:\nIt is old.\n"
    assert sessions("export", "rome", str(tmp_path / "a.md"))[0] == 0
    assert "It is old." in (tmp_path / "a.md").read_text()


def test_they_are_deleted_with_their_cache_or_only_that(sessions):
    rome = SessionFolder().file("rome")
    assert sessions("rm", "rome", "--kv-only", "-y")[0] == 0 and rome.exists() and not rome.cache_bytes
    assert sessions("rm", "rome", "-y")[0] == 0 and not rome.exists()


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("delete",), "sessions knows no 'delete'"),
        (("ls", "x"), "takes no name"),
        (("search",), "takes the words"),
        (("show", "paris"), "no session named paris"),
        (("show", "../x"), "no session name"),
        (("rm",), "takes a name"),
        (("export", "rome"), "a name and a file"),
        (("ls", "--kv-only"), "--kv-only is for"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(sessions, args, why):
    code, out, err = sessions(*args)
    assert code == 2 and out == "" and why in err and len(err.splitlines()) == 1
