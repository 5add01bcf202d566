"""Folders and cached models: what is read, what is refused, and with which words."""

from pathlib import Path

import pytest

from kvlite.catalog.files import local_files, model_facts
from kvlite.catalog.names import ModelRef, resolve_model
from kvlite.catalog.snapshots import cache_root
from kvlite.errors import BrokenModel, HubUnreachable, UnsupportedModel
from kvlite.memory.format import human_bytes
from kvlite.memory.prediction import Weights
from tests.hub_server import HubServer
from tests.model_folder import CONFIG, WEIGHTS, model_files, sharded_files, write_model

WEIGHED = Weights(412, 203, {"BF16": 400, "F32": 12})


def test_facts_of_a_folder(tmp_path: Path) -> None:
    files = local_files(resolve_model(str(write_model(tmp_path, model_files()))))
    assert files.folder == tmp_path
    assert files.config == CONFIG and files.generation == {"temperature": 0.5}
    assert (files.weights, files.stored_dtype) == (WEIGHED, "bfloat16")
    assert (files.repo, files.revision, files.license) == (None, None, "apache-2.0")


def test_folder_with_only_a_config_has_facts_and_no_files(tmp_path: Path) -> None:
    write_model(tmp_path, {"config.json": b'{"model_type": "llama"}'})
    facts = model_facts(ModelRef(path=tmp_path))
    assert facts.config == {"model_type": "llama"} and facts.weights is None and facts.stored_dtype is None
    with pytest.raises(BrokenModel, match="no weights"):
        local_files(ModelRef(path=tmp_path))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "holds no config.json"),
        (b"", "is not JSON"),
        (b"{'a': 1}", r"is not JSON .* line 1, column 2"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (b'{"a": "\xff"}', r"is not UTF-8 \(byte 7\)"),
        (b"[" * 100_000, "is not JSON that can be read"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON that can be read"),
    ],
)
def test_broken_config_is_one_line(tmp_path: Path, config: bytes | None, said: str) -> None:
    write_model(tmp_path, model_files(config__json=config))
    with pytest.raises(BrokenModel, match=said) as caught:
        local_files(ModelRef(path=tmp_path))
    assert "\n" not in str(caught.value)


def test_pickles_are_loaded_only_when_allowed(tmp_path: Path) -> None:
    write_model(tmp_path, model_files(model__safetensors=None, pytorch_model__bin=b"12345"))
    with pytest.raises(UnsupportedModel, match="only pickle weights"):
        local_files(ModelRef(path=tmp_path))
    assert local_files(ModelRef(path=tmp_path), allow_pickle=True).weights == Weights(5)


def test_an_adapter_is_refused_with_or_without_a_config(tmp_path: Path) -> None:
    write_model(tmp_path, {"adapter_model.safetensors": b""})
    with pytest.raises(UnsupportedModel, match="adapter"):
        local_files(ModelRef(path=tmp_path))
    write_model(tmp_path, model_files(model__safetensors=None))
    with pytest.raises(UnsupportedModel, match="adapter"):
        local_files(ModelRef(path=tmp_path))


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, model_files(tokenizer__json=None))
    with pytest.raises(BrokenModel, match="no tokenizer"):
        local_files(ModelRef(path=tmp_path))


def test_download_then_no_request_ever_again(hub: HubServer) -> None:
    repo = hub.add("org/name", sharded_files() | {"model.bin": b"x", "q4.gguf": b"x", "onnx/model.onnx": b"x"})
    size = human_bytes(sum(map(len, sharded_files().values())))
    said: list[str] = []
    first = local_files(resolve_model("org/name"), say=said.append)
    assert said == [f"downloading org/name@{repo.commit[:7]}, licence unknown, {size}"]
    assert (first.repo, first.revision, first.weights) == ("org/name", repo.commit, WEIGHED)
    assert {path.name for path in first.folder.iterdir()} == set(sharded_files())

    hub.requests.clear()
    assert local_files(resolve_model("org/name")) == first
    assert local_files(resolve_model("org/name"), offline=True) == first
    assert local_files(resolve_model(f"org/name@{repo.commit}")).folder == first.folder
    assert model_facts(resolve_model("org/name")).weights == WEIGHED
    assert hub.requests == []


def test_facts_from_the_hub_download_no_weights(hub: HubServer) -> None:
    hub.add("org/one", model_files(), card={"license": "other", "license_name": "mine"})
    hub.add("org/two", sharded_files())
    for name, licence in (("org/one", "mine"), ("org/two", None)):
        facts = model_facts(resolve_model(name))
        assert (facts.config, facts.weights, facts.license) == (CONFIG, WEIGHED, licence)
        with pytest.raises(HubUnreachable, match="is not in the cache"):
            local_files(resolve_model(name), offline=True)
    assert all(path.suffix == ".json" for path in cache_root().glob("models--*/snapshots/*/*"))


def test_config_that_is_cached_gives_facts_offline(hub: HubServer) -> None:
    commit = hub.add("org/name", model_files()).commit
    model_facts(resolve_model(f"org/name@{commit}"))
    facts = model_facts(resolve_model(f"org/name@{commit}"), offline=True)
    assert facts.config == CONFIG and facts.weights is None


def test_half_a_snapshot_is_completed(hub: HubServer) -> None:
    ref = resolve_model("org/name")
    hub.add("org/name", sharded_files())
    folder = local_files(ref).folder
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(HubUnreachable, match=r"missing: model-00002-of-00002\.safetensors"):
        local_files(ref, offline=True)
    assert local_files(ref).weights == WEIGHED


def test_weights_are_downloaded_last(hub: HubServer) -> None:
    hub.add("org/name", model_files())
    local_files(resolve_model("org/name"))
    fetched = [line.rsplit("/", 1)[1] for line in hub.requests if line.startswith("GET") and "/resolve/" in line]
    assert fetched[-1] == "model.safetensors"
    assert set(fetched) == set(model_files())


def test_damaged_download_is_named(hub: HubServer) -> None:
    hub.add("org/name", model_files(model__safetensors=WEIGHTS[:-5]))
    with pytest.raises(BrokenModel, match=r"model\.safetensors is truncated.*kvlite rm"):
        local_files(resolve_model("org/name"))
