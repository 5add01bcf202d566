"""The Hub when it says no, says nothing, or stops half-way: one line each, with what to do."""

import re
from pathlib import Path

import pytest

from kvlite.catalog.adapter import adapter_folder
from kvlite.catalog.files import local_files, model_facts
from kvlite.catalog.model_files import ModelFiles
from kvlite.catalog.names import ModelRef, resolve_model
from kvlite.errors import (
    BrokenModel,
    GatedModel,
    HubUnreachable,
    KvliteError,
    ModelNotFound,
    OutputError,
    UnsupportedModel,
)
from tests.hub_server import HubServer
from tests.model_folder import model_files, safetensors, sharded_files

LLAMA = "meta-llama/Llama-2-7b-chat-hf"


def refusal(name: str, kind: type[KvliteError]) -> str:
    """What local_files says about `name`, which must be one line of an error of this kind."""
    with pytest.raises(kind) as caught:
        local_files(resolve_model(name))
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


def size_of(files: ModelFiles) -> int | None:
    return files.weights and files.weights.num_bytes


def test_unknown_repository(hub: HubServer) -> None:
    assert "no model org/none, or it is private and no token was found" in refusal("org/none", ModelNotFound)


def test_unknown_repository_with_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert "the token of HF_TOKEN has no access" in refusal("org/none", ModelNotFound)


def test_unknown_revision(hub: HubServer) -> None:
    hub.add("org/name", model_files(), branches=("main", "v1"))
    assert "has no revision 'v2'" in refusal("org/name@v2", ModelNotFound)
    assert size_of(local_files(resolve_model("org/name@v1"))) == 412


def test_gated_without_a_token(hub: HubServer) -> None:
    hub.add(LLAMA, model_files(), gated=True, card={"license": "llama2"})
    said = refusal("llama-7b", GatedModel)
    for part in (
        "licence llama2",
        "no token was found",
        f"https://huggingface.co/{LLAMA}",
        "`hf auth login`",
        "qwen2.5-7b",
    ):
        assert part in said
    with pytest.raises(GatedModel):
        model_facts(resolve_model("llama-7b"))
    assert not any("/resolve/" in request for request in hub.requests)


def test_gated_with_a_token_that_opens_it(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(LLAMA, model_files(), gated=True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert size_of(local_files(resolve_model("llama-7b"))) == 412


def test_refused_token_is_named_by_its_source(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/name", model_files())
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_wrong")
    assert f"refused the token of {tmp_path / 'hf' / 'token'}" in refusal("org/name", HubUnreachable)


def test_offline_by_the_environment(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", model_files())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "missing: config.json, tokenizer, safetensors weights) and kvlite is offline" in refusal(
        "org/name", HubUnreachable
    )
    assert hub.requests == []


def test_no_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/here", model_files())
    local_files(resolve_model("org/here"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = refusal("org/name", HubUnreachable)
    assert "from http://127.0.0.1:9" in said and "cached models still work" in said
    assert size_of(local_files(resolve_model("org/here"))) == 412


def test_no_hub_at_this_address(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    portal = b"<html>Log in to this hotel's network</html>"
    monkeypatch.setattr("tests.hub_server._Handler._json", lambda self, _value: self._send(200, portal, {}))
    hub.add("org/name", model_files())
    refusal("org/name", HubUnreachable)


def test_interrupted_download_continues(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _s: None)
    weights = safetensors({"a": ("F32", [50_000], 200_000)})
    repo = hub.add("org/name", model_files(model__safetensors=weights), stops_after=150_000)
    said = refusal("org/name", HubUnreachable)
    assert "`kvlite pull org/name` continues" in said
    repo.stops_after = None
    assert size_of(local_files(resolve_model("org/name"))) == 200_000


def test_cache_that_cannot_be_written(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", model_files())
    monkeypatch.setenv("HF_HUB_CACHE", "/dev/null/hub")
    assert "in the cache /dev/null/hub: Not a directory" in refusal("org/name", OutputError)


def test_pickle_only_repository(hub: HubServer) -> None:
    hub.add("org/name", model_files(model__safetensors=None, pytorch_model__bin=b"123"))
    assert "only pickle weights (pytorch_model.bin)" in refusal("org/name", UnsupportedModel)
    assert size_of(local_files(resolve_model("org/name"), allow_pickle=True)) == 3
    assert "only pickle weights" in refusal("org/name", UnsupportedModel)


def test_a_repository_without_a_tokenizer_is_refused_before_its_weights_are_fetched(hub: HubServer) -> None:
    hub.add("org/name", model_files(tokenizer__json=None))
    assert "has no tokenizer (tokenizer.json); copy it from the model" in refusal("org/name", BrokenModel)
    assert not any("safetensors" in request for request in hub.requests)


def test_only_the_shards_that_the_index_names_are_fetched(hub: HubServer) -> None:
    more = {"diffusion.safetensors": b"123", "consolidated.safetensors": b"123"}
    hub.add("org/name", sharded_files() | more)
    assert size_of(local_files(resolve_model("org/name"))) == 412
    assert not any(name in request for name in more for request in hub.requests)


def test_a_repository_whose_gguf_file_is_none_says_so(hub: HubServer) -> None:
    hub.add("org/name-GGUF", {"README.md": b"", "q4.gguf": b"x"}, card={"base_model": ["org/name"]})
    assert refusal("org/name-GGUF", BrokenModel).endswith("q4.gguf is not a GGUF file; download it again")


def test_repository_without_a_model(hub: HubServer) -> None:
    hub.add("org/text", {"README.md": b""})
    assert "holds no config.json" in refusal("org/text", BrokenModel)
    with pytest.raises(BrokenModel, match="holds no config"):
        model_facts(resolve_model("org/text"))


def test_damaged_header_on_the_hub(hub: HubServer) -> None:
    hub.add("org/name", model_files(model__safetensors=b"\xff" * 200))
    with pytest.raises(BrokenModel, match="damaged weights on the Hub"):
        model_facts(resolve_model("org/name"))


def test_hub_is_not_loaded_by_the_catalogue() -> None:
    import subprocess
    import sys

    code = (
        "import sys, kvlite.catalog.files, kvlite.catalog.completion as c\nc.complete_model('q'); print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"huggingface_hub", "torch", "transformers", "numpy"} & set(re.split(r"\s+", out))


def test_ref_prints_as_what_the_user_would_type() -> None:
    assert [str(ref) for ref in (ModelRef(alias="a", repo="b/c"), ModelRef(repo="b/c"))] == ["a", "b/c"]


def test_an_adapter_comes_from_the_address_that_the_environment_names(hub: HubServer) -> None:
    hub.add("org/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"123", "other.bin": b"1"})
    folder = adapter_folder("org/adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(ModelNotFound, match=r"^the Hub has no model org/none"):
        adapter_folder("org/none")
