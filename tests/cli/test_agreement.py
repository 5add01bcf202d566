"""One rule for all commands: a model that plan, show, ls or a dry run accepts is one that run answers with."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText

from kvlite.catalog.names import demo_folder
from kvlite.catalog.snapshots import cache_root
from kvlite.cli import main
from tests.architectures import REFUSED, SUPPORTED, is_here, tiny_model
from tests.matrix import but_few

COMMIT = "0" * 40
REPO = "org/name"
VOCAB = 1024  # of the built-in model's tokenizer
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES = {"image_size": 16, "patch_size": 8}
SEEING = {
    "mistral3": ("mistral", "pixtral"),
    "llava": ("llama", "clip_vision_model"),
    "gemma3": ("gemma3_text", "siglip_vision_model"),
    "aya_vision": ("cohere2", "siglip_vision_model"),
}
"""Models that also see: the text model and the one that sees."""


@pytest.fixture
def snapshot(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the cache, where the repository REPO lies at its only commit, with a tokenizer."""
    monkeypatch.setattr(sys, "stdin", None)
    root = cache_root() / f"models--{REPO.replace('/', '--')}"
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo_folder() / name, folder)
    return folder


def accepts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> dict[str, tuple[bool, str]]:
    """Each command with True where it takes the model, and what it says against it."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hi\n")

    def call(*words: str) -> tuple[int, str, str]:
        code = main([*words, *([] if words[0] == "ls" else ["--offline"])])
        out, err = capsys.readouterr()
        return code, out, err.rstrip("\n").rpartition("\n")[2]

    code, _, said = call("run", REPO, "hi", "-n", "1")
    found = {"run": (code == 0, said)}
    code, _, said = call("plan", REPO)
    found["plan"] = (code == 0, said)
    code, _, said = call("batch", str(prompts), "-m", REPO, "--dry-run")
    found["dry run"] = (code == 0, said)
    code, out, said = call("show", REPO, "--json")
    problem = json.loads(out)["problem"] if out else said
    found["show"] = (problem is None, f"kvlite: {problem}")
    _, out, _ = call("ls", "--json")
    (listed,) = (one for one in json.loads(out) if one["repo"] == REPO)
    found["ls"] = (listed["state"] == "ready", f"kvlite: {listed['problem']}")
    return found


def assert_all(found: dict[str, tuple[bool, str]], *, take: bool) -> None:
    assert {command: taken for command, (taken, _) in found.items()} == dict.fromkeys(found, take), found
    if not take:
        assert len({said for _, said in found.values()}) == 1, "each says it in its own words"


@pytest.mark.parametrize("family", but_few(SUPPORTED, "llama", "gemma3n_text", "lfm2"))
def test_what_runs_is_accepted_by_all(
    family: str, snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not is_here(family):
        pytest.skip(f"this transformers has no {family}")
    sizes = {"vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB}
    settings = {**SUPPORTED[family], **{name: size for name, size in sizes.items() if name in SUPPORTED[family]}}
    tiny_model(family, settings, vocab_size=VOCAB).save_pretrained(snapshot)
    assert_all(accepts(capsys, tmp_path), take=True)


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_refused_is_refused_by_all_in_one_line(
    family: str, snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(family, REFUSED[family]).save_pretrained(snapshot)
    assert_all(accepts(capsys, tmp_path), take=False)


@pytest.mark.parametrize("family", SEEING)
def test_the_text_part_of_a_model_that_also_sees_runs_alone(
    family: str, snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, vision = (AutoConfig.for_model(name) for name in SEEING[family])
    text = tiny_model(SEEING[family][0], SUPPORTED[SEEING[family][0]], vocab_size=VOCAB).config
    seeing = AutoConfig.for_model(vision.model_type, **VISION, **IMAGES)
    config = AutoConfig.for_model(family, text_config=text, vision_config=seeing, image_token_index=5)
    whole = AutoModelForImageTextToText.from_config(config)
    whole.save_pretrained(snapshot)
    found = accepts(capsys, tmp_path)
    assert_all(found, take=True)
    assert main(["plan", REPO, "--json", "--offline"]) == 0
    (term,) = (term for term in json.loads(capsys.readouterr().out)["terms"] if term["name"] == "weights")
    parts = whole.model.language_model.num_parameters() + (0 if config.tie_word_embeddings else VOCAB * 64)
    assert term["predicted_bytes"] == 4 * parts < 4 * whole.num_parameters()


def config_with(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


ODD = {
    "mlx": (config_with(quantization={"group_size": 64, "bits": 4}), "is an MLX conversion"),
    "a classifier": (config_with(architectures=["LlamaForSequenceClassification"]), "generates no text"),
    "a reward model": (config_with(architectures=["Qwen2ForProcessRewardModel"]), "generates no text"),
    "an embedding model": (config_with(architectures=["LlamaModel"]), "generates no text"),
    "quantised by none knows what": (config_with(quantization_config={"quant_method": "q0"}), "quantised by 'q0'"),
    "quantised by what is applied to plain weights alone": (
        config_with(quantization_config={"quant_method": "hqq"}),
        "is quantised by 'hqq', which transformers applies to plain weights alone; use",
    ),
    "quantised by what is not here": (config_with(quantization_config={"quant_method": "aqlm"}), "`pip install aqlm`"),
    "seeing in its own way": (config_with(text_config={}, vision_config={}, model_type="blip-2"), "also see or hear"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_would_not_load_is_refused_by_all(
    name: str, snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, says = ODD[name]
    tiny_model("llama", {}, vocab_size=VOCAB).save_pretrained(snapshot)
    change(snapshot)
    found = accepts(capsys, tmp_path)
    assert_all(found, take=False)
    assert says in found["run"][1]
