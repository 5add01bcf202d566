"""The commands over the Hugging Face cache: data on stdout, the rest on stderr, codes a script can rely on."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kvlite.catalog import runnable
from kvlite.catalog.names import demo_folder
from kvlite.catalog.snapshots import cache_root
from kvlite.cli import main
from tests.hub_server import HubServer, private_hub
from tests.model_folder import CONFIG, KV_BYTES_PER_TOKEN, model_files, sharded_files, write_model


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Kvlite = Callable[..., Ran]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with private_hub(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def kvlite(hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kvlite:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))

    def run(*args: str) -> Ran:
        capsys.readouterr()
        code = main(args)
        return Ran(code, *capsys.readouterr())

    return run


def replace_cached(repo: str, name: str, content: bytes | None) -> None:
    """Put other bytes in place of a cached file, or a link that leads nowhere."""
    (path,) = cache_root().glob(f"models--{repo}/snapshots/*/{name}")
    path.unlink()
    if content is None:
        path.symlink_to("../../blobs/nowhere")
    else:
        path.write_bytes(content)


def test_pull_says_what_comes_and_prints_the_folder(hub: HubServer, kvlite: Kvlite) -> None:
    commit = hub.add("org/name", sharded_files(), card={"license": "mit"}).commit
    code, out, err = kvlite("pull", "org/name")
    assert code == 0 and err.startswith(f"downloading org/name@{commit[:7]}, licence mit, ")
    assert (Path(out.removesuffix("\n")) / "model-00002-of-00002.safetensors").is_file()
    again = kvlite("pull", "org/name", "--json")
    assert ", 0 B of it not here" in again.err
    assert json.loads(again.out) == {"repo": "org/name", "revision": commit, "license": "apache-2.0"} | {
        "folder": out.removesuffix("\n")
    }


def test_pull_takes_a_newer_commit_and_keeps_the_old(hub: HubServer, kvlite: Kvlite) -> None:
    hub.add("org/name", model_files())
    old = kvlite("pull", "org/name").out
    hub.add("org/name", model_files(generation_config__json=b"{}"))
    new = kvlite("pull", "org/name").out
    assert old != new and Path(old.strip()).is_dir() and Path(new.strip()).is_dir()


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("org/none", 3, "the Hub has no model org/none"),
        ("org/pickle", 3, "only pickle weights"),
        ("org/gguf", 3, "q4.gguf is not a GGUF file"),
        ("org/gated", 3, "is gated"),
        ("lama-7b", 3, "did you mean llama-7b?"),
        ("org/name@a --revision b", 2, "two revisions"),
    ],
)
def test_pull_refuses_in_one_line(hub: HubServer, kvlite: Kvlite, name: str, code: int, said: str) -> None:
    hub.add("org/pickle", model_files(model__safetensors=None, pytorch_model__bin=b"1"))
    hub.add("org/gguf", {"q4.gguf": b"1"})
    hub.add("org/gated", model_files(), gated=True)
    ran = kvlite("pull", *name.split())
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err and ran.err.count("\n") == 1
    assert not list(cache_root().glob("*/snapshots/*/*"))


def test_pull_allow_pickle(hub: HubServer, kvlite: Kvlite) -> None:
    hub.add("org/pickle", model_files(model__safetensors=None, pytorch_model__bin=b"1"))
    assert kvlite("pull", "org/pickle", "--allow-pickle").code == 0


def test_pull_without_a_network(kvlite: Kvlite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cached models still work" in kvlite("pull", "org/name").err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = kvlite("pull", "org/name")
    assert ran.code == 3 and "HF_HUB_OFFLINE is set" in ran.err


def test_ls_marks_what_cannot_be_used(hub: HubServer, kvlite: Kvlite) -> None:
    hub.add("Qwen/Qwen3-0.6B", model_files())
    hub.add("org/half", model_files())
    hub.add("org/bloom", model_files())
    for name in ("qwen3-0.6b", "org/half", "org/bloom"):
        assert kvlite("pull", name).code == 0
    replace_cached("org--bloom", "config.json", b'{"model_type": "bloom"}')  # as other programs download it
    next(cache_root().glob("models--org--half/snapshots/*/model.safetensors")).unlink()
    listed = {model["name"]: model for model in json.loads(kvlite("ls", "--json").out)}
    assert [*listed] == ["demo", "qwen3-0.6b", "org/bloom", "org/half"]
    assert (listed["demo"]["state"], listed["demo"]["repo"]) == ("ready", None)
    good = listed["qwen3-0.6b"]
    assert (good["repo"], good["state"], good["problem"]) == ("Qwen/Qwen3-0.6B", "ready", None)
    assert good["kv_bytes_per_token"] == KV_BYTES_PER_TOKEN
    assert good["size_bytes"] >= sum(map(len, model_files().values()))
    assert (listed["org/bloom"]["state"], listed["org/bloom"]["kv_bytes_per_token"]) == ("unsupported", None)
    assert listed["org/half"]["state"] == "incomplete" and "safetensors weights" in listed["org/half"]["problem"]

    header, *rows = kvlite("ls").out.splitlines()
    assert header.split() == ["NAME", "REPO", "SIZE", "KV/TOK", "MODIFIED", "STATE"]
    assert [row.split()[-1] for row in rows[1:]] == ["ready", "unsupported", "incomplete"]
    assert rows[2].split()[4] == "?"
    assert kvlite("ls", "-q").out.splitlines() == [*listed]


@pytest.mark.parametrize("files", [model_files(), sharded_files()])
def test_weights_that_a_link_does_not_lead_to_are_missing_for_ls_and_run(
    hub: HubServer, kvlite: Kvlite, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", files)
    kvlite("pull", "org/name")
    lost = max(name for name in files if name.endswith(".safetensors"))
    replace_cached("org--name", lost, None)
    _, listed = json.loads(kvlite("ls", "--json").out)
    missing = "safetensors weights" if lost == "model.safetensors" else lost
    assert (listed["state"], listed["problem"]) == (
        "incomplete",
        f"missing: {missing}; `kvlite pull org/name` completes it",
    )
    ran = kvlite("run", "org/name", "hi", "--offline")
    assert (ran.code, ran.out) == (3, "")
    assert f"org/name is not in the cache (missing: {missing}) and kvlite is offline" in ran.err


def test_a_commit_that_is_here_is_named_where_another_is_not(hub: HubServer, kvlite: Kvlite) -> None:
    commit = hub.add("org/name", model_files()).commit
    kvlite("pull", f"org/name@{commit}")
    expected = (
        f"kvlite: org/name is not in the cache and kvlite is offline; another commit is here: org/name@{commit}\n"
    )
    for command in (["run", "org/name", "hi"], ["plan", "org/name"], ["show", "org/name"]):
        ran = kvlite(*command, "--offline")
        assert (ran.code, ran.out, ran.err) == (3, "", expected)


BERT = b'{"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}'
MLX_CARD = b"---\nlibrary_name: mlx\nbase_model:\n- Qwen/Qwen3-4B\n---\n# x"
REFUSED_BEFORE_WEIGHTS = [
    (
        model_files(config__json=json.dumps(CONFIG | {"quantization": {"group_size": 64, "bits": 4}}).encode()),
        "org/x is an MLX conversion, which only Apple's mlx runs; use Qwen/Qwen3-4B",
    ),
    (model_files(config__json=BERT), "org/x is a LlamaForSequenceClassification, which generates no text; choose a "),
    (
        model_files(config__json=json.dumps(CONFIG | {"quantization_config": {"quant_method": "aqlm"}}).encode()),
        "org/x is quantised by aqlm, which needs aqlm; `pip install aqlm`, or use Qwen/Qwen3-4B",
    ),
    (
        model_files(
            config__json=json.dumps({"model_type": "qwen2_vl", "text_config": CONFIG, "vision_config": {}}).encode()
        ),
        "'qwen2_vl' models also see or hear, and kvlite does not know their text part",
    ),
    (
        model_files(tokenizer__json=None) | {"tokenizer.model": b"1"},
        "org/x has its vocabulary in SentencePiece's form alone, which needs sentencepiece and protobuf; "
        "`pip install 'kvlite-llm[sentencepiece]'`",
    ),
    (
        model_files(tokenizer__json=None) | {"tekken.json": b"{}"},
        "org/x has its vocabulary in tekken.json alone, which only Mistral's own programs read; choose a copy of the "
        "model that holds a tokenizer.json",
    ),
    (
        {name: data for name, data in sharded_files().items() if not name.endswith("2-of-00002.safetensors")},
        "org/x has no model-00002-of-00002.safetensors, which its model.safetensors.index.json names; ask its owner to",
    ),
]


@pytest.mark.parametrize(("files", "says"), REFUSED_BEFORE_WEIGHTS)
def test_what_cannot_run_is_refused_before_its_weights_are_fetched(
    hub: HubServer, kvlite: Kvlite, files: dict[str, bytes], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runnable, "_is_installed", lambda package: False)
    hub.add("org/x", files, card={"base_model": "Qwen/Qwen3-4B"})
    for command in (["pull", "org/x"], ["run", "org/x", "hi"]):
        ran = kvlite(*command)
        assert (ran.code, ran.out) == (3, "")
        assert ran.err.startswith(f"kvlite: {says}") and ran.err.count("\n") == 1
    assert not list(cache_root().glob("*/snapshots/*/*.safetensors"))


def test_a_proxy_that_needs_a_package_says_which(kvlite: Kvlite, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://example.invalid")
    from huggingface_hub import close_session

    close_session()
    try:
        ran = kvlite("pull", "org/name")
    finally:
        monkeypatch.undo()
        close_session()
    assert ran.code == 3 and ran.err.count("\n") == 1
    assert "`pip install socksio`, or use another proxy" in ran.err


def test_ls_names_a_lone_commit_so_that_the_name_works(hub: HubServer, kvlite: Kvlite) -> None:
    commit = hub.add("org/name", model_files()).commit
    kvlite("pull", f"org/name@{commit}")
    assert kvlite("ls", "-q").out.splitlines() == ["demo", f"org/name@{commit}"]
    assert kvlite("show", f"org/name@{commit}", "--offline").code == 0


def test_ls_survives_a_damaged_cache(hub: HubServer, kvlite: Kvlite) -> None:
    (cache_root() / "models--org--empty" / "refs").mkdir(parents=True)
    (cache_root() / "models--org--empty" / "refs" / "main").write_text("../../../etc")
    hub.add("org/bad", model_files())
    kvlite("pull", "org/bad")
    replace_cached("org--bad", "config.json", b"[]")
    listed = {model["name"]: model["state"] for model in json.loads(kvlite("ls", "--json").out)}
    assert listed == {"demo": "ready", "org/bad": "broken", "org/empty": "incomplete"}


def test_show_asks_the_hub_for_facts_and_no_weights(hub: HubServer, kvlite: Kvlite) -> None:
    commit = hub.add("org/name", model_files(), card={"license": "mit"}).commit
    shown = json.loads(kvlite("show", "org/name", "--json").out)
    assert (shown["repo"], shown["revision"], shown["license"]) == ("org/name", commit, "mit")
    assert (shown["weight_bytes"], shown["parameters"]) == (412, 203)
    assert (shown["family"], shown["query_heads"], shown["window"]) == ("llama", 4, 512)
    (group,) = shown["layers"]
    assert (group["count"], group["kind"], group["kv_heads"], group["k_dim"]) == (3, "full", 2, 16)
    assert shown["kv_bytes_per_token"] == KV_BYTES_PER_TOKEN
    assert not list(cache_root().glob("*/snapshots/*/*.safetensors"))


def test_show_for_people(tmp_path: Path, kvlite: Kvlite) -> None:
    folder = str(write_model(tmp_path / "m", model_files()))
    lines = kvlite("show", folder).out.splitlines()
    assert f"KV per token  {KV_BYTES_PER_TOKEN:,} bytes" in lines
    assert "layers        3 full, 2 KV heads of 16" in lines
    assert lines[-1] == "window        512 tokens"


def test_show_says_why_a_model_cannot_be_held(tmp_path: Path, kvlite: Kvlite) -> None:
    folder = str(write_model(tmp_path / "m", model_files(config__json=b'{"model_type": "bloom"}')))
    ran = kvlite("show", folder)
    assert ran.code == 0 and "problem       kvlite cannot hold 'bloom'" in ran.out


def test_show_demo_prints_its_card(kvlite: Kvlite) -> None:
    shown = kvlite("show", "demo")
    assert shown.code == 0 and "KV per token" in shown.out
    assert (demo_folder() / "MODEL_CARD.md").read_text().splitlines()[-1] in shown.out
    assert kvlite("show").out == shown.out


def test_show_offline_without_the_model(kvlite: Kvlite) -> None:
    ran = kvlite("show", "org/name", "--offline")
    assert (ran.code, ran.out) == (3, "") and "kvlite is offline" in ran.err


def test_rm_without_a_terminal_needs_yes(hub: HubServer, kvlite: Kvlite) -> None:
    hub.add("org/name", model_files())
    kvlite("pull", "org/name")
    ran = kvlite("rm", "org/name")
    assert ran.code == 2 and "-y" in ran.err and len(list(cache_root().glob("models--*"))) == 1
    ran = kvlite("rm", "org/name", "-y")
    assert (ran.code, ran.out) == (0, "") and "deleted org/name, freed" in ran.err
    assert not list(cache_root().glob("models--*"))
    assert kvlite("rm", "org/name", "-y").code == 3


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 1), ("", 1)])
def test_rm_asks_on_a_terminal(
    hub: HubServer, kvlite: Kvlite, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    hub.add("org/name", model_files())
    kvlite("pull", "org/name")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: f"{answer}\n", raising=False)
    ran = kvlite("rm", "org/name")
    assert (ran.code, ran.out) == (0, "") and "Delete org/name" in ran.err
    assert len(list(cache_root().glob("models--*"))) == left


def test_rm_of_one_revision_leaves_the_other(hub: HubServer, kvlite: Kvlite) -> None:
    old = hub.add("org/name", model_files()).commit
    kvlite("pull", "org/name")
    hub.add("org/name", model_files(generation_config__json=b"{}"))
    kvlite("pull", "org/name")
    assert kvlite("rm", "org/name", "--revision", old, "-y").code == 0
    assert kvlite("show", f"org/name@{old}", "--offline").code == 3
    assert kvlite("pull", "org/name", "--json").code == 0
    assert [model["state"] for model in json.loads(kvlite("ls", "--json").out)[1:]] == ["ready"]


def test_rm_never_touches_folders_or_the_built_in_model(tmp_path: Path, kvlite: Kvlite) -> None:
    folder = write_model(tmp_path / "m", model_files())
    for name in (str(folder), "demo"):
        ran = kvlite("rm", name, "-y")
        assert ran.code == 2 and "only from the Hugging Face cache" in ran.err
    assert len(list(folder.iterdir())) == len(model_files())


def test_completion_of_names(hub: HubServer, kvlite: Kvlite) -> None:
    from kvlite.catalog.completion import complete_model

    hub.add("Qwen/Qwen3-0.6B", model_files())
    kvlite("pull", "qwen3-0.6b")
    assert complete_model("Qwen3:0") == ["Qwen3:0.6b"]
    assert complete_model("qwen/") == ["Qwen/Qwen3-0.6B"]
    assert complete_model("dem") == ["demo"]
    assert complete_model("q", is_cached=True) == ["qwen3-0.6b", "Qwen/Qwen3-0.6B"]
