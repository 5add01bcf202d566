"""`kvlite alias`: the user's own names for models, and that they count where a model is named."""

import json

import pytest

from kvlite.catalog.completion import complete_model
from kvlite.catalog.names import resolve_model
from kvlite.catalog.own_aliases import own_aliases_file
from kvlite.cli import main
from kvlite.errors import ModelNotFound, UsageError
from tests.model_folder import model_files, write_model


@pytest.fixture
def alias(capfd):
    """Runs `kvlite alias` and gives back exit code, stdout and stderr."""

    def alias(*args):
        code = main(["alias", *args])
        return (code, *capfd.readouterr())

    return alias


def test_a_name_is_given_listed_and_taken_away(alias):
    assert alias("set", "Fast:1", "qwen2.5:0.5b") == (0, "", "fast-1 stands for qwen2.5:0.5b\n")
    assert alias("-q")[1] == "fast-1\n" and json.loads(alias("--json")[1]) == {"fast-1": "qwen2.5:0.5b"}
    assert "fast-1  qwen2.5:0.5b" in alias("ls")[1]
    assert resolve_model("FAST:1").repo == resolve_model("qwen2.5-0.5b").repo
    assert resolve_model("fast-1@v1").revision == "v1"
    assert alias("rm", "fast-1")[0] == 0 and alias("-q")[1] == ""


def test_it_counts_more_than_a_name_of_the_package_and_less_than_a_path(alias, tmp_path, monkeypatch):
    alias("set", "qwen3-4b", "org/name@v2")
    assert (resolve_model("qwen3-4b").repo, resolve_model("qwen3-4b").revision) == ("org/name", "v2")
    with pytest.raises(UsageError, match="two revisions"):
        resolve_model("qwen3-4b@v1", revision="v2")
    write_model(tmp_path / "qwen3-4b", model_files())
    monkeypatch.chdir(tmp_path)
    assert resolve_model("qwen3-4b").path == tmp_path / "qwen3-4b"


def test_a_name_for_a_name_or_a_folder_stands_for_what_that_is_now(alias, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "mine", model_files())
    alias("set", "a", "./mine")
    alias("set", "b", "a")
    alias("rm", "a")
    monkeypatch.chdir(tmp_path.parent)
    assert resolve_model("b").path == tmp_path / "mine"


def test_what_a_name_stands_for_may_be_gone(alias, tmp_path):
    folder = tmp_path / "mine"
    write_model(folder, model_files())
    alias("set", "a", str(folder))
    folder.rename(tmp_path / "moved")
    with pytest.raises(ModelNotFound, match=f"a stands for {folder}: "):
        resolve_model("a")


def test_it_is_suggested_and_completed(alias):
    alias("set", "favourite", "demo")
    with pytest.raises(ModelNotFound, match="did you mean favourite"):
        resolve_model("favorite")
    assert complete_model("fav") == ["favourite"]
    assert complete_model("fav", is_cached=True) == []


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("list",), "alias knows no 'list'; give ls, set, rm"),
        (("ls", "x"), "alias ls takes no name, not 'x'"),
        (("set", "x"), "alias set takes a name and a model"),
        (("set", "a b", "demo"), "'a b' is no name for a model"),
        (("set", "demo", "qwen3-4b"), "'demo' is the built-in model"),
        (("rm",), "alias rm takes a name"),
        (("rm", "x"), "you have no alias 'x'"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(alias, args, why):
    code, out, err = alias(*args)
    assert code == 2 and not out and why in err and err.count("\n") == 1


def test_a_model_that_there_is_not_gets_no_name(alias):
    code, _, err = alias("set", "x", "./nowhere")
    assert code == 3 and "nowhere" in err and not own_aliases_file().exists()


@pytest.mark.parametrize("content", ["x = ", "x = 3", 'X = "demo"', b"\xff\xfe"])
def test_a_file_that_is_broken_is_named(alias, content):
    own_aliases_file().parent.mkdir(parents=True, exist_ok=True)
    own_aliases_file().write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = alias()
    assert code == 2 and str(own_aliases_file()) in err and err.count("\n") == 1
    assert complete_model("dem") == ["demo"]
