"""One rule for all commands: a model that plan, show, ls or a dry run accepts is one that run answers with."""

from __future__ import annotations

import json
import shutil
import sys
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText

from kvlite.catalog.names import demo_folder
from kvlite.catalog.snapshots import cache_root
from kvlite.cli import main
from tests.architectures import REFUSED, SUPPORTED, is_here, tiny_model
from tests.gguf.gguf_file import write_model
from tests.matrix import but_few
from tests.models.test_gguf_weights import FAMILIES

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


def accepts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str = REPO, *options: str
) -> dict[str, tuple[bool, str]]:
    """Each command with True where it takes the model with these options, and what it says against it.

    `ls` and `show` are left out where there are options.
    """
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hi\n")

    def call(*words: str) -> tuple[int, str, str]:
        code = main([*words, *([] if words[0] == "ls" else ["--offline"])])
        out, err = capsys.readouterr()
        return code, out, err.rstrip("\n").rpartition("\n")[2]

    code, _, said = call("run", name, "hi", "-n", "1", *options)
    found = {"run": (code == 0, said)}
    code, _, said = call("plan", name, *options)
    found["plan"] = (code == 0, said)
    code, _, said = call("batch", str(prompts), "-m", name, "--dry-run", *options)
    found["dry run"] = (code == 0, said)
    if options:
        return found
    code, out, said = call("show", name, "--json")
    problem = json.loads(out)["problem"] if out else said.removeprefix("kvlite: ")
    found["show"] = (problem is None, f"kvlite: {problem}")
    _, out, _ = call("ls", "--json")
    (listed,) = (one for one in json.loads(out) if name in (one["name"], one["repo"]))
    found["ls"] = (listed["state"] == "ready", f"kvlite: {listed['problem']}")
    return found


def assert_all(found: dict[str, tuple[bool, str]], *, take: bool) -> None:
    assert {command: taken for command, (taken, _) in found.items()} == dict.fromkeys(found, take), found
    if not take:
        assert len({said for _, said in found.values()}) == 1, "each says it in its own words"


def sized(family: str, vocab: int) -> dict[str, Any]:
    """Settings of a family with so many tokens wherever it counts them."""
    sizes = dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), vocab)
    return {**SUPPORTED[family], **{name: size for name, size in sizes.items() if name in SUPPORTED[family]}}


@pytest.mark.parametrize("family", but_few(SUPPORTED, "llama", "gemma3n_text", "lfm2"))
def test_what_runs_is_accepted_by_all(
    family: str, snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not is_here(family):
        pytest.skip(f"this transformers has no {family}")
    tiny_model(family, sized(family, VOCAB), vocab_size=VOCAB).save_pretrained(snapshot)
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


def cut_tokenizer(folder: Path) -> None:
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[:5000])


def marked(folder: Path) -> None:
    text = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(BOM_UTF8 + text)


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
    "an end token in words": (config_with(eos_token_id="2"), "eos_token_id is '2'; expected a token id"),
    "layers that are not there": (config_with(num_hidden_layers=5), "counts 5 layers and the weights"),
    "a tokenizer that is cut off": (cut_tokenizer, "tokenizer.json is no JSON object, or is cut off"),
    "a mark before the text": (marked, "begins with a byte-order mark"),
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


@pytest.mark.parametrize("quant", ["--4bit", "--quant=8bit"])
def test_all_agree_on_what_can_be_quantised(
    quant: str, snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("llama", {}, vocab_size=VOCAB).save_pretrained(snapshot)
    assert_all(accepts(capsys, tmp_path, REPO, quant), take=True)
    config_with(quantization_config={"quant_method": "fp8"})(snapshot)
    assert_all(accepts(capsys, tmp_path, REPO, quant), take=False)


GGUF = "lmstudio:org/model"


@pytest.fixture
def gguf_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The place of GGUF, a model of LM Studio's; nothing is there yet."""
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".lmstudio" / "models" / "org" / "model" / "model.gguf"
    file.parent.mkdir(parents=True)
    return file


@pytest.mark.parametrize("family", but_few(FAMILIES, "llama", "gemma3_text", "gpt2"))
def test_a_gguf_file_that_runs_is_accepted_by_all(
    family: str, gguf_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(gguf_file, tiny_model(family, sized(family, 300), vocab_size=300))
    assert_all(accepts(capsys, tmp_path, GGUF), take=True)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"llama.block_count": 3}, "header counts 3 layers"),
        ({"llama.block_count": 5}, "has no blk.4"),
        ({"llama.feed_forward_length": 128}, "where its header means"),
        ({"tokenizer.ggml.pre": "none-knows"}, "cuts text as 'none-knows'"),
        ({"tokenizer.ggml.merges": None}, "has no merges"),
    ],
)
def test_a_gguf_file_that_would_not_load_is_refused_by_all(
    about: dict[str, Any], says: str, gguf_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(gguf_file, tiny_model("llama", SUPPORTED["llama"], vocab_size=300), **about)
    found = accepts(capsys, tmp_path, GGUF)
    assert_all(found, take=False)
    assert says in found["run"][1]
