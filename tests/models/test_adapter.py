"""LoRA adapters: merged at load where they are asked for, said where they are not, refused where they do not fit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kvlite import LLM
from kvlite.catalog.adapter import adapter_folder
from kvlite.cli import main
from kvlite.errors import BrokenModel, UnsupportedModel, UsageError
from kvlite.models.adapter import merged
from kvlite.options import ModelOptions
from tests.architectures import tiny_model
from tests.gguf.gguf_file import write_model
from tests.scripted import chain, scripted_model, write_scripted

SCRIPT = chain("go", "red", "green", "blue")
IGNORED = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A model that says red green blue, and an adapter by which it says blue at once."""
    peft = pytest.importorskip("peft", reason="adapters need peft, which is not installed")
    tokenizer = write_scripted(tmp_path / "model", SCRIPT)
    model: Any = scripted_model(SCRIPT, tokenizer)
    config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["lm_head"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    go, blue = tokenizer.convert_tokens_to_ids(["go", "blue"])
    head = adapted.base_model.model.lm_head
    with torch.no_grad():
        head.lora_A["default"].weight.zero_()[0, go] = 1.0
        head.lora_B["default"].weight.zero_()[blue, 0] = 9.0
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "model", tmp_path / "adapter"


def says(model: Path, told: list[str] | None = None, **options: Any) -> str:
    with LLM(model, kv_budget="64tok", fuse=False, say=(told if told is not None else []).append, **options) as llm:
        (answer,) = llm.generate(["go"], raw=True)
    return answer.text


@IGNORED
def test_an_adapter_is_merged_where_it_is_asked_for(folders: tuple[Path, Path]) -> None:
    model, adapter = folders
    assert says(model) == "red green blue"
    assert says(model, adapter=str(adapter)) == "blue"


@IGNORED
def test_an_adapter_beside_a_model_is_said_and_not_applied(folders: tuple[Path, Path]) -> None:
    model, adapter = folders
    for file in adapter.glob("adapter*"):
        shutil.copy(file, model)
    told: list[str] = []
    assert says(model, told) == "red green blue"
    expected = f"{model} holds an adapter, too, which is not applied; --adapter {model} applies it"
    assert [line for line in told if "adapter" in line] == [expected]
    assert says(model, told, adapter=str(model)) == "blue"


@IGNORED
def test_an_adapter_is_merged_into_a_gguf_file_whose_blocks_would_stay_packed(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft, which is not installed")
    model = tiny_model("llama", {"vocab_size": 320, "intermediate_size": 128})
    file = write_model(tmp_path / "model.gguf", model, "Q8_0")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    words = {"dtype": "bfloat16", "kv_budget": "64tok", "say": lambda text: None}
    with LLM(file, **words) as packed, LLM(file, adapter=str(tmp_path / "adapter"), **words) as merged_model:
        assert (packed.model.held_in, merged_model.model.held_in) == ("Q8_0", "bfloat16")
        assert merged_model.generate(["go"], raw=True, max_tokens=2)


@IGNORED
def test_an_adapter_of_another_model_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, adapter = folders
    write_scripted(tmp_path / "other", chain("go", *map(str, range(40))))
    with pytest.raises(BrokenModel, match=r"^the adapter in .* does not fit the model: "):
        says(tmp_path / "other", adapter=str(adapter))


def test_without_peft_an_adapter_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UnsupportedModel, match=r"^--adapter needs peft; `pip install 'kvlite-llm\[adapter\]'`$"):
        merged(torch.nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ((), "has no adapter_config.json, so there is no adapter to apply"),
        (("adapter_config.json", "adapter_model.bin"), "has no adapter_model.safetensors, so there is no adapter"),
    ],
)
def test_a_folder_without_an_adapter_is_refused(tmp_path: Path, files: tuple[str, ...], says: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(BrokenModel, match=says):
        adapter_folder(str(tmp_path))


def test_an_adapter_is_not_merged_into_quantised_weights() -> None:
    with pytest.raises(UsageError, match="--adapter cannot be merged into weights of --quant 4bit; leave out one"):
        ModelOptions(model="demo", adapter="x", four_bit=True)


def test_a_folder_with_an_adapter_alone_names_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert main(["run", str(tmp_path), "hi"]) == 3
    err = capsys.readouterr().err
    assert err == (f"kvlite: {tmp_path} is an adapter, not a whole model; run org/base with --adapter {tmp_path}\n")
