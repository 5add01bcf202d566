"""`kvlite plan` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvlite.cli import main

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "data" / "configs"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the model folders of CONFIGS, each only a config.json, and no settings of the user's."""
    for path in CONFIGS.glob("*.json"):
        (tmp_path / path.stem).mkdir()
        (tmp_path / path.stem / "config.json").write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [name for name in os.environ if name.startswith("KVLITE_")]:
        monkeypatch.delenv(name)
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> dict[str, Any]:
    assert main(["plan", *args, "--json"]) == code
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "per_token", "tokens"),
    [
        ("llama-2-7b", 524_288, 3_584),
        ("llama-3.1-8b", 131_072, 14_851),
        ("qwen2.5-0.5b", 12_288, 28_672),
        ("gemma-2-2b", 106_496, 7_168),
    ],
)
def test_bytes_per_token_and_tokens_in_two_gigabytes(
    name: str, per_token: int, tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    got = planned(capsys, f"./{name}", "--kv-budget", "2GB", "--kv-dtype", "bf16", "--vram", "24GB")
    assert (got["kv_bytes_per_token"], got["tokens"]) == (per_token, tokens)
    terms = {term["name"]: term["predicted_bytes"] for term in got["terms"]}
    cache = ("kv", "policy_state", "positions", "staging", "constant_state")
    assert got["reserved_bytes"] == sum(terms[line] for line in cache) <= got["budget_bytes"] == 2 * 10**9


@pytest.mark.usefixtures("folder")
def test_sliding_layers_hold_their_window(capsys: pytest.CaptureFixture[str]) -> None:
    groups = planned(capsys, "./gemma-2-2b", "--vram", "24GB")["layers"]
    assert [(group["count"], group["window"], group["slots"]) for group in groups] == [
        (13, 4096, 4096),
        (13, None, 7168),
    ]


@pytest.mark.usefixtures("folder")
def test_policies_that_look_at_no_attention_keep_no_state(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {
        policy: planned(capsys, "./llama-3.1-8b", "--kv-budget", "2GB", "--vram", "24GB", "--kv-policy", policy)
        for policy in ("heavy-hitter", "h2o", "snapkv", "window", "keydiff", "full")
    }
    assert [kept[name]["policy_state_bytes_per_slot"] for name in kept] == [4, 4, 4, 0, 0, 0]
    assert kept["window"]["tokens"] > kept["h2o"]["tokens"]


@pytest.mark.usefixtures("folder")
def test_a_pyramid_has_fewer_slots_in_later_layers_for_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("./llama-3.1-8b", "--kv-budget", "256MB", "--vram", "24GB", "--kv-policy")
    equal, pyramid = (planned(capsys, *args, policy) for policy in ("snapkv", "pyramid"))
    slots = [group["slots"] for group in pyramid["layers"]]
    assert slots == sorted(slots, reverse=True) and len(slots) == 32
    assert abs(pyramid["tokens"] - equal["tokens"]) <= 1 and pyramid["reserved_bytes"] <= 256 * 10**6
    assert pyramid["chunk"] == slots[-1] // 4
    steeper = planned(capsys, *args, "pyramid:beta=2")
    assert steeper["layers"][0]["slots"] < slots[0]  # the last layers have more than a twentieth
    assert main(["plan", *args, "pyramid"]) == 0
    said = f"{pyramid['tokens']:,} a row on average, {slots[-1]:,} to {slots[0]:,} a layer"
    assert said in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_layers_of_a_pyramid_are_equal_where_nothing_is_evicted(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("./llama-3.1-8b", "--kv-budget", "256MB", "--vram", "24GB", "--kv-policy", "pyramid", "--on-full", "stop")
    assert len(planned(capsys, *args)["layers"]) == 1


@pytest.mark.usefixtures("folder")
def test_it_is_read_as_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "./llama-2-7b", "--kv-budget", "2GB", "--vram", "24GB"]) == 0
    out, err = capsys.readouterr()
    for text in ("524,288 B", "3,584 a row", "policy_state", "staging", "unknown", "fits:"):
        assert text in out
    assert err == ""


@pytest.mark.usefixtures("folder")
def test_without_weights_they_are_unknown_and_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    got = planned(capsys, "./llama-2-7b", "--vram", "24GB")
    assert got["weights_known"] is False
    assert got["terms"][0]["predicted_bytes"] is None


@pytest.mark.usefixtures("folder")
def test_what_does_not_fit_is_json_too_exits_4_and_says_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "./llama-3.1-8b", "--kv-budget", "12GB", "--kv-dtype", "bf16", "--vram", "12GB", "--json"]) == 4
    )
    out, err = capsys.readouterr()
    got = json.loads(out)
    assert got["fits"] is False
    assert got["kv_bytes_per_token"] == 131_072
    assert got["try"][0].startswith("--kv-budget ")
    assert err.count("\n") == 1
    assert "does not fit" in err
    change = got["try"][0].split()[1]
    assert main(["plan", "./llama-3.1-8b", "--kv-budget", change, "--vram", "12GB"]) == 0


@pytest.mark.usefixtures("folder")
def test_a_budget_too_small_for_what_is_protected_names_the_smallest(capsys: pytest.CaptureFixture[str]) -> None:
    got = planned(capsys, "./llama-3.1-8b", "--kv-budget", "300kB", "--vram", "24GB", code=4)
    assert (got["tokens"], got["reserved_bytes"]) == (0, None)
    smallest = got["shortage"].split("smallest that works is ")[1].split(" ")[0]
    assert planned(capsys, "./llama-3.1-8b", "--kv-budget", smallest, "--vram", "24GB")["fits"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("model", "args", "dtype"),
    [
        ("llama-2-7b", ["2GB"], "float16"),
        ("llama-2-7b", ["1.5GB"], "int8"),
        ("llama-2-7b", ["500MB"], "int4"),
        ("llama-3.1-8b", ["2GB"], "int4"),
        ("llama-3.1-8b", ["2GB", "--kv-dtype", "float16"], "float16"),
        ("llama-3.1-8b", ["2000tok"], "bfloat16"),
        ("llama-3.1-8b", ["2GB", "--batch-size", "4"], "bfloat16"),
        ("llama-3.1-8b", ["2GB", "--batch-size", "4", "--kv-per-seq", "100MB"], "int4"),
        ("llama-3.1-8b", ["2GB", "--batch-size", "4", "--kv-per-seq", "100tok"], "bfloat16"),
    ],
)
def test_auto_is_the_most_exact_format_that_holds_the_window(
    capsys: pytest.CaptureFixture[str], model: str, args: list[str], dtype: str
) -> None:
    got = planned(capsys, f"./{model}", "--vram", "48GB", "--kv-budget", *args)
    assert got["kv_dtype"] == dtype
    assert got["reserved_bytes"] <= got["budget_bytes"]


@pytest.mark.usefixtures("folder")
def test_a_format_chosen_for_the_budget_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "./llama-3.1-8b", "--kv-budget", "2GB", "--vram", "24GB"]) == 0
    assert "36,864 B in int4; auto takes it if the model, once loaded, tolerates it" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_a_context_alone_asks_for_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    got = planned(capsys, "./llama-3.1-8b", "--context", "4000", "--batch-size", "3", "--vram", "24GB")
    assert (got["tokens"], got["rows"]) == (4000, 3)
    assert got["budget_bytes"] == got["reserved_bytes"] == 3 * 4001 * 32 * 8 * (512 + 6 + 8)


@pytest.mark.usefixtures("folder")
def test_a_context_names_a_budget_that_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    got = planned(capsys, "./llama-3.1-8b", "--context", "30000", "--vram", "24GB")
    again = planned(capsys, "./llama-3.1-8b", "--kv-budget", got["kv_budget"], "--vram", "24GB")
    assert again["tokens"] >= 30_000


@pytest.mark.usefixtures("folder")
def test_a_budget_names_the_longest_context_and_the_most_rows(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("./llama-3.1-8b", "--kv-dtype", "bf16", "--kv-budget", "2GB", "--vram", "24GB")
    assert planned(capsys, *asked)["tokens"] == 14_851
    many = planned(capsys, *asked, "--batch-size", "1000", "--context", "2000")
    assert many["rows"] == 2 * 10**9 // (2001 * 32 * 8 * 524)
    none = planned(capsys, *asked, "--batch-size", "1000", "--context", "20000", code=4)
    assert none["fits"] is False


@pytest.mark.usefixtures("folder")
def test_what_stops_when_full_may_use_the_whole_window(capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(*args: str) -> int:
        return int(planned(capsys, "./llama-2-7b", "--vram", "24GB", *args)["tokens"])

    assert [tokens(), tokens("--on-full", "stop"), tokens("--kv-policy", "full")] == [3584, 4096, 4096]


@pytest.mark.usefixtures("folder")
def test_hybrids_run_one_row_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "./lfm2-1.2b", "--batch-size", "8", "--vram", "24GB")["rows"] == 1


BUDGETS = [
    [],
    ["--kv-budget", "300KB"],
    ["--kv-budget", "5MB", "--prefill-chunk", "16"],
    ["--kv-budget", "100tok", "--kv-policy", "window"],
    ["--kv-budget", "full", "--on-full", "stop"],
    ["--kv-budget", "2MB", "--dtype", "bfloat16"],
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("flags", BUDGETS, ids=" ".join)
def test_the_cache_of_a_run_is_the_one_planned(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    plan = planned(capsys, "demo", "--device", "cpu", *flags)
    assert main(["run", "-m", "demo", "-n", "1", "--device", "cpu", *flags, "--report", "run.json", "hi"]) == 0
    kv = json.loads(Path("run.json").read_text())["kv"]
    assert (kv["capacity_tokens"], kv["reserved_bytes"]) == (plan["tokens"], plan["reserved_bytes"])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "flags",
    [
        *[[*flags, "--batch-size", "3"] for flags in BUDGETS[:-2]],
        ["--kv-budget", "5MB", "--kv-per-seq", "64tok", "--batch-size", "4"],
        ["--kv-per-seq", "1MB", "--batch-size", "2"],
    ],
    ids=" ".join,
)
def test_the_cache_of_a_batch_is_the_one_of_its_dry_run_and_within_the_plan(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(capsys, "demo", "--device", "cpu", *flags)
    Path("in.txt").write_text("hi\nhello\n")
    words = ["batch", "in.txt", "-m", "demo", "--format", "text", "-n", "1", "--device", "cpu", *flags]
    assert main([*words, "--dry-run", "--json"]) == 0
    tried = json.loads(capsys.readouterr().out)
    assert main([*words, "-o", "out.jsonl", "--report", "run.json"]) == 0
    kv = json.loads(Path("run.json").read_text())["kv"]
    assert (kv["capacity_tokens"], kv["reserved_bytes"]) == (tried["slots"], tried["kv"]["reserved_bytes"])
    assert kv["reserved_bytes"] <= plan["reserved_bytes"]


def test_weights_come_from_the_headers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(4000)
    (folder / "qwen2.5-0.5b" / "model.safetensors").write_bytes(weights)
    (folder / "qwen2.5-0.5b" / "tokenizer.json").write_text("{}")
    got = planned(capsys, "./qwen2.5-0.5b", "--kv-budget", "100MB", "--device", "cpu")
    assert got["terms"][0] == {"name": "weights", "predicted_bytes": 2000, "note": "1,000 parameters in bfloat16"}
    assert got["weights_known"] is True
    wide = planned(capsys, "./qwen2.5-0.5b", "--kv-budget", "800MB", "--device", "cpu", "--dtype", "float32")
    assert wide["terms"][0]["predicted_bytes"] == 4000
    assert wide["kv_bytes_per_token"] == 24_576


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["./llama-2-7b", "--kv-budget", "2"], 2, "2GB"),
        (["./llama-2-7b", "--kv-budget", "-1GB"], 2, "2GB"),
        (["./llama-2-7b", "--vram", "huge"], 2, "8GB"),
        (["./llama-2-7b", "--vram", "0GB"], 2, "8GB"),
        (["./llama-2-7b", "--context", "0"], 2, "context"),
        (["./llama-2-7b", "--batch-size", "0"], 2, "batch-size"),
        (["./llama-2-7b", "--kv-dtype", "int3"], 2, "float16"),
        (["./llama-2-7b", "--dtype", "int8"], 2, "float16"),
        (["./llama-2-7b", "--kv-policy", "best"], 2, "best"),
        (["./llama-2-7b", "--4bit", "--quant", "8bit"], 2, "contradicts"),
        (["./llama-2-7b", "--device", "tpu"], 2, "tpu"),
        (["./llama-2-7b", "--kv-per-seq", "1GB"], 2, "--batch-size"),
        (["./llama-2-7b", "--kv-per-seq", "1GB", "--batch-size", "2", "--context", "9"], 2, "leave out"),
        (["./llama-2-7b", "--device", "cuda:one"], 2, "cuda:N"),
        (["./nowhere"], 3, "nowhere"),
        (["./broken"], 3, "num_hidden_layers"),
        (["./bloom"], 3, "bloom"),
        (["./list"], 3, "list"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    folder: Path, args: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "broken": '{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": "two"}',
        "bloom": '{"model_type": "bloom", "n_layer": 2}',
        "list": "[]",
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    assert main(["plan", *args]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


def test_it_loads_neither_torch_nor_numpy_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from kvlite.cli import main;"
        "code = main(['plan', './llama-2-7b', '--kv-budget', '2GB', '--json']);"
        "heavy = {'torch', 'numpy', 'transformers', 'triton', 'bitsandbytes', 'huggingface_hub'} & set(sys.modules);"
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].split(" ", 1)[1] == "[]"
    assert json.loads(done.stdout)["kv_bytes_per_token"] == 524_288


@pytest.mark.usefixtures("folder")
def test_low_bit_slots_keep_more_tokens_and_take_room_for_their_coding(capsys: pytest.CaptureFixture[str]) -> None:
    wide, narrow = (
        planned(capsys, "./llama-2-7b", "--kv-budget", "100MB", "--device", "cpu", "--kv-dtype", dtype)
        for dtype in ("float16", "int4")
    )
    assert (wide["kv_bytes_per_token"], narrow["kv_bytes_per_token"]) == (524_288, 147_456)
    assert narrow["kv_dtype"] == "int4" and narrow["reserved_bytes"] <= 100_000_000
    assert narrow["tokens"] > 3.2 * wide["tokens"]
    activations = [next(term for term in got["terms"] if term["name"] == "activations") for got in (wide, narrow)]
    chunk_bytes = [
        term["predicted_bytes"] / got["chunk"] for term, got in zip(activations, (wide, narrow), strict=True)
    ]
    assert chunk_bytes[1] - chunk_bytes[0] == 4 * 32 * 128 * (3 + 6)  # H_Q = H_KV = 32, D = 128
