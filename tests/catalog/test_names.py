"""Names of models: what each spelling means, and what is said about one that means nothing."""

from pathlib import Path

import pytest

from kvlite.catalog.names import aliases, resolve_model
from kvlite.errors import ModelNotFound, UsageError
from tests.model_folder import model_files, write_model


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("llama-7b", "meta-llama/Llama-2-7b-chat-hf"),
        ("LLAMA2:7B", "meta-llama/Llama-2-7b-chat-hf"),
        ("qwen2.5:0.5b", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("qwen/qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("org/name", "org/name"),
        ("hf.co/org/name", "org/name"),
        ("hf://org/na.me_2", "org/na.me_2"),
        ("https://huggingface.co/org/name", "org/name"),
        ("https://huggingface.co/org/name/", "org/name"),
        ("https://huggingface.co/org/name/tree/main", "org/name"),
    ],
)
def test_spellings_of_one_repository(name: str, repo: str) -> None:
    assert resolve_model(name).repo == repo


def test_revision_in_the_name_or_beside_it() -> None:
    assert resolve_model("org/name@v1").revision == "v1"
    assert resolve_model("qwen3-4b@v1").revision == "v1"
    assert resolve_model("org/name@refs/pr/1").revision == "refs/pr/1"
    assert resolve_model("org/name", revision="v1").revision == "v1"
    assert resolve_model("org/name@v1", revision="v1").revision == "v1"
    with pytest.raises(UsageError, match="two revisions"):
        resolve_model("org/name@v1", revision="v2")


def test_an_address_from_a_browser_keeps_its_revision_and_file() -> None:
    assert resolve_model("https://huggingface.co/org/name/tree/v1").revision == "v1"
    ref = resolve_model("https://huggingface.co/org/name/resolve/main/q/name-Q4_K_M.gguf?download=true")
    assert (ref.repo, ref.revision, ref.quant) == ("org/name", None, "q/name-Q4_K_M.gguf")


def test_demo_is_a_folder_of_the_package() -> None:
    ref = resolve_model("Demo")
    assert ref.is_demo and ref.path is not None and ref.path.parts[-2:] == ("kvlite", "demo")
    with pytest.raises(UsageError, match="no revisions"):
        resolve_model("demo@main")


def test_unknown_name_suggests_near_aliases() -> None:
    with pytest.raises(ModelNotFound, match=r"'lama-7b'; did you mean llama-7b\?"):
        resolve_model("lama-7b")
    with pytest.raises(ModelNotFound, match="org/name from the Hub"):
        resolve_model("zzzzz")


@pytest.mark.parametrize(
    "name", ["../x/../y", "org/name--x", "org/a..b", "or g/name", "a\0b", "x" * 5000, "/" + "y" * 5000]
)
def test_malformed_names_are_not_found(name: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve_model(name)


def test_empty_name_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        resolve_model(" ")


def test_folder_wins_when_it_looks_like_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert resolve_model("./empty").path == tmp_path / "empty"
    with pytest.raises(ModelNotFound, match="no folder"):
        resolve_model("./nothing")


def test_bare_name_is_a_folder_only_with_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    assert resolve_model("org/name").repo == "org/name"
    write_model(Path("org/name"), model_files())
    assert resolve_model("org/name").path == tmp_path / "org/name"
    assert resolve_model("hf://org/name").repo == "org/name"


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert resolve_model("~/m").path == tmp_path / "m"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelNotFound, match="is a file"):
        resolve_model(str(tmp_path / "model.safetensors"))
    with pytest.raises(UsageError, match="is a path"):
        resolve_model(str(tmp_path), revision="v1")


def test_alias_table_is_consistent() -> None:
    table = aliases()
    spellings = [name for alias in table.values() for name in (alias.name, *alias.also)]
    assert len(spellings) == len(set(spellings))
    assert all(name == name.lower() and ":" not in name for name in spellings)
    assert all(not table[alias.instead].gated for alias in table.values())
    assert len({alias.repo.lower() for alias in table.values()}) == len(table)
