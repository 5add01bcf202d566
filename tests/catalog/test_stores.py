"""Models of ollama, LM Studio, llama.cpp and Docker: found by name, listed, used, and left as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from kvlite.catalog.files import local_files
from kvlite.catalog.listing import list_models
from kvlite.catalog.names import resolve_model
from kvlite.catalog.snapshots import cache_root
from kvlite.catalog.stores import stored_models
from kvlite.cli import main
from kvlite.errors import ModelNotFound
from tests.wheel_index import tiny_gguf

MODEL = "application/vnd.ollama.image.model"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf"))


def ollama(root: Path, file: Path, *names: str) -> None:
    """Write an ollama store in which each of `names` (host/owner/model/tag) is `file`."""
    content = file.read_bytes()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    for name in names:
        manifest = root / "manifests" / name
        manifest.parent.mkdir(parents=True, exist_ok=True)
        layers = [{"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:0"}]
        layers.append({"mediaType": MODEL, "digest": digest, "size": len(content)})
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    blobs = root / "blobs"
    blobs.mkdir(exist_ok=True)
    (blobs / digest.replace(":", "-")).write_bytes(content)


@pytest.fixture
def stores(own_home: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with all four stores, beside damaged and foreign files."""
    root = own_home / ".ollama" / "models"
    ollama(root, file, "registry.ollama.ai/library/llama3.2/3b", "registry.ollama.ai/library/tiny/latest")
    ollama(root, file, "hf.co/org/tiny-GGUF/Q8_0")
    for name, text in (
        ("broken", "{"),
        ("strange", "[1]"),
        ("empty", "{}"),
        ("gone", '{"layers": []}'),
        ("number", json.dumps({"layers": [{"mediaType": MODEL, "digest": 3}]})),
    ):
        (root / "manifests/registry.ollama.ai/library" / name).mkdir()
        (root / "manifests/registry.ollama.ai/library" / name / "latest").write_text(text)
    for place in (".lmstudio/models/maker/tiny-GGUF/tiny.gguf", ".cache/llama.cpp/other.gguf"):
        (own_home / place).parent.mkdir(parents=True)
        (own_home / place).write_bytes(file.read_bytes())
    (own_home / ".lmstudio/models/maker/tiny-GGUF/mmproj-tiny.gguf").write_bytes(b"")
    docker(own_home / ".docker" / "models", file, "docker.io/ai/tiny:1B-Q8_0")
    return own_home


def docker(root: Path, file: Path, *tags: str) -> None:
    """Write the store of Docker's Model Runner with one model, called `tags`, beside entries that are damaged."""
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    layers = [
        {"mediaType": "application/vnd.docker.ai.gguf.v3", "digest": digest},
        {"mediaType": "application/vnd.docker.ai.license", "digest": f"sha256:{'1' * 64}"},
        {"mediaType": "application/vnd.docker.ai.mmproj", "digest": digest},
    ]
    split = [layers[0], layers[0]]
    for folder, name, content in (
        ("blobs", digest, file.read_bytes()),
        ("manifests", f"sha256:{'a' * 64}", json.dumps({"layers": layers}).encode()),
        ("manifests", f"sha256:{'b' * 64}", json.dumps({"layers": split}).encode()),
        ("manifests", f"sha256:{'c' * 64}", b"{"),
    ):
        path = root / folder / name.replace(":", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    entries: list[object] = [
        {"id": f"sha256:{letter * 64}", "tags": [*tags] if letter == "a" else [f"docker.io/ai/{letter}:latest"]}
        for letter in "abcd"
    ]
    (root / "models.json").write_text(json.dumps({"models": [*entries, 3, {"id": f"sha256:{'a' * 64}", "tags": None}]}))


NAMES = [
    "docker:ai/tiny:1B-Q8_0", "llama.cpp:other", "lmstudio:maker/tiny-GGUF", "ollama:hf.co/org/tiny-GGUF:Q8_0",
    "ollama:llama3.2:3b", "ollama:tiny:latest",
]  # fmt: skip


def test_all_are_listed_by_the_names_their_programs_have(stores: Path) -> None:
    assert [str(model) for model in stored_models() if not model.problem] == NAMES
    listed = {model.name: model for model in list_models()}
    assert [listed[name].state for name in NAMES] == ["ready"] * len(NAMES)
    assert {listed[name].repo for name in NAMES} == {"docker", "llama.cpp", "lmstudio", "ollama"}


@pytest.mark.parametrize("name", [*NAMES, "ollama:tiny", "tiny:latest", "OLLAMA:Llama3.2:3B"])
def test_a_name_finds_the_file_and_nothing_is_changed(stores: Path, file: Path, name: str) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in stores.rglob("*") if path.is_file()}
    files = local_files(resolve_model(name))
    assert files.gguf is not None and files.gguf.path.read_bytes() == file.read_bytes()
    assert files.name.lower().removesuffix(":latest").endswith(name.lower().removesuffix(":latest"))
    after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in before}
    assert after == before


DAMAGED = "is damaged: its manifest cannot be read; pull it again with ollama"
PROBLEMS = {
    "broken": DAMAGED,
    "strange": DAMAGED,
    "empty": DAMAGED,
    "number": DAMAGED,
    "gone": "holds no GGUF file, which is all that kvlite reads from ollama; use the model's safetensors repository",
    "dangling": f"is not whole: sha256-{'0' * 64} is missing; pull it again with ollama",
    "adapted": "is an adapter on another model, which kvlite does not read from ollama; use the merged model",
    "other": f"holds sha256-{'1' * 64}, which is no GGUF file; pull it again with ollama",
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_cannot_be_taken_is_listed_and_refused_with_the_reason(stores: Path, name: str) -> None:
    root = stores / ".ollama/models"
    (root / "blobs" / f"sha256-{'1' * 64}").write_bytes(b"something")
    adapter = {"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:5"}
    for made, layers in (
        ("dangling", [{"mediaType": MODEL, "digest": f"sha256:{'0' * 64}"}]),
        ("other", [{"mediaType": MODEL, "digest": f"sha256:{'1' * 64}"}]),
        ("adapted", [{"mediaType": MODEL, "digest": f"sha256:{'1' * 64}"}, adapter]),
    ):
        (root / "manifests/registry.ollama.ai/library" / made).mkdir()
        (root / "manifests/registry.ollama.ai/library" / made / "latest").write_text(json.dumps({"layers": layers}))
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(f"ollama:{name}")
    said = f"ollama:{name}:latest {PROBLEMS[name]}"
    assert str(caught.value) == said
    (listed,) = (model for model in list_models() if model.name == f"ollama:{name}:latest")
    assert (listed.state, listed.problem) == ("unsupported", said)


def test_a_whole_model_is_taken_before_a_damaged_one_of_its_name(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    damaged = tmp_path / "manifests/registry.ollama.ai/library/tiny/latest"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    path = resolve_model("ollama:tiny").path
    assert path is not None and path.is_relative_to(stores)


def test_a_split_file_has_the_size_of_all_its_parts(own_home: Path, file: Path) -> None:
    folder = own_home / ".lmstudio/models/maker/split"
    folder.mkdir(parents=True)
    for part in (1, 2):
        (folder / f"m-0000{part}-OF-00002.gguf").write_bytes(file.read_bytes())
    (listed,) = (model for model in list_models() if model.name == "lmstudio:maker/split")
    assert listed.size_bytes == 2 * file.stat().st_size and listed.state == "ready"


def test_a_folder_of_several_files_is_asked_for_the_quantisation(own_home: Path, file: Path) -> None:
    folder = own_home / ".lmstudio/models/two/quants"
    folder.mkdir(parents=True)
    for quant in ("Q4_1", "Q8_0"):
        (folder / f"model-{quant}.gguf").write_bytes(file.read_bytes())
    for name in ("LMSTUDIO:two/quants:Q8_0", "two/quants:q8_0", "lmstudio:two/quants:model-Q8_0.gguf"):
        assert str(resolve_model(name)) == "lmstudio:two/quants:model-Q8_0"
    with pytest.raises(ModelNotFound, match=r"has several GGUF files; of model-Q4_1\.gguf, model-Q8_0\.gguf name one"):
        resolve_model("lmstudio:two/quants")
    (folder / "model-Q4_K_M.gguf").write_bytes(file.read_bytes())
    assert str(resolve_model("two/quants")) == "lmstudio:two/quants:model-Q4_K_M"
    assert resolve_model("two/quants:Q5_0").repo == "two/quants"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ollama:llama3.2", "did you mean ollama:llama3.2:3b?"),
        ("ollama:tinny", "did you mean ollama:tiny:latest?"),
        ("ollama:nothing-like-it", "`kvlite ls` lists ollama's"),
    ],
)
def test_an_unknown_name_of_a_store_is_told_that_stores_own(stores: Path, name: str, says: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(name)
    assert str(caught.value) == f"no model is called {name!r}; {says}"


def test_a_bare_name_is_another_programs_where_only_that_has_it_here(stores: Path) -> None:
    assert str(resolve_model("tiny")) == "ollama:tiny:latest"
    assert str(resolve_model("llama3.2:3b")) == "ollama:llama3.2:3b"
    for name in ("https://ollama.com/library/llama3.2:3b", "ollama.com/library/llama3.2:3b"):
        assert str(resolve_model(name)) == "ollama:llama3.2:3b"
    assert str(resolve_model("maker/tiny-GGUF")) == "lmstudio:maker/tiny-GGUF"
    for name in ("hf.co/org/tiny-GGUF:Q8_0", "org/tiny-GGUF:q8_0"):
        assert str(resolve_model(name)) == "ollama:hf.co/org/tiny-GGUF:Q8_0"
    assert resolve_model("llama3.2-3b").repo == "meta-llama/Llama-3.2-3B-Instruct"
    assert resolve_model("maker/tiny-GGUF", revision="main").repo == "maker/tiny-GGUF"
    with pytest.raises(ModelNotFound, match="no model is called 'ollama:none'"):
        resolve_model("ollama:none")


def test_what_the_hubs_cache_holds_is_meant_before_another_programs(stores: Path) -> None:
    for name in ("maker--tiny-GGUF", "meta-llama--Llama-3.2-3B-Instruct"):
        (cache_root() / f"models--{name}/snapshots/{'0' * 40}").mkdir(parents=True)
    assert resolve_model("maker/tiny-GGUF").repo == "maker/tiny-GGUF"
    assert resolve_model("llama3.2:3b").repo == "meta-llama/Llama-3.2-3B-Instruct"


def test_lm_studios_moved_folders_are_found(own_home: Path, file: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "downloads/maker/moved", tmp_path / "home/models/maker/pointed"):
        place.mkdir(parents=True)
        (place / "x.gguf").write_bytes(file.read_bytes())
    (own_home / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'home'}\n")
    (tmp_path / "home/settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "downloads")}))
    assert [str(model) for model in stored_models()] == ["lmstudio:maker/moved", "lmstudio:maker/pointed"]
    (tmp_path / "home/settings.json").write_text("{")
    assert [str(model) for model in stored_models()] == ["lmstudio:maker/pointed"]


def test_a_system_prompt_of_ollamas_is_said(
    own_home: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = own_home / ".ollama/models"
    ollama(root, file, "registry.ollama.ai/me/pirate/latest")
    manifest = root / "manifests/registry.ollama.ai/me/pirate/latest"
    layers = json.loads(manifest.read_text())["layers"]
    layers.append({"mediaType": "application/vnd.ollama.image.system", "digest": "sha256:5"})
    manifest.write_text(json.dumps({"layers": layers}))
    monkeypatch.setattr("sys.stdin", None)
    assert main(["run", "-m", "me/pirate", "hi", "-n", "1"]) == 0
    (cache_root() / f"models--me--pirate/snapshots/{'0' * 40}").mkdir(parents=True)
    assert resolve_model("me/pirate").system is None  # that of the Hub has none
    own = f"ollama:me/pirate:latest has a system prompt of its own: that is --system @{root}/blobs/sha256-5"
    assert own in capsys.readouterr().err.splitlines()


def test_the_folder_that_ollama_is_told_of_comes_first(
    stores: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    ollama(tmp_path, file, "registry.ollama.ai/library/tiny/latest")
    path = resolve_model("ollama:tiny").path
    assert path is not None and path.is_relative_to(tmp_path)
