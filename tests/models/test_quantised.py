"""Weights through bitsandbytes on the CPU: what the flag says is what the live modules hold, the answers are theirs."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from kvlite.catalog.names import demo_folder
from kvlite.engine.request import Request
from kvlite.errors import UsageError
from kvlite.models.fusing import fuse, probe_logits
from kvlite.models.loaded import LoadedModel
from kvlite.models.loading import load
from kvlite.models.quantised import quantisation
from kvlite.models.verify import relative_error
from kvlite.options import ModelOptions
from tests.architectures import tiny_model
from tests.engine_for_tests import answers, make_engine
from tests.model_folder import files_of
from tests.program import finish, start

CPU = torch.device("cpu")
FOUR_BITS = ("nf4", "fp4")
PROMPT = [(37 * i + 5) % 1024 for i in range(20)]
NEW_TOKENS = 16

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # bitsandbytes and torch's own
]


def save(folder: Path, **sizes: int) -> Path:
    """A tiny llama with the built-in model's tokenizer."""
    tiny_model("llama", {"vocab_size": 1024, "intermediate_size": 128, **sizes}).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose every matrix is whole blocks."""
    return save(tmp_path_factory.mktemp("even"))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model one of whose matrices has rows of 5.5 blocks."""
    return save(tmp_path_factory.mktemp("uneven"), intermediate_size=352)


def loaded(folder: Path, quant: str) -> LoadedModel:
    options = ModelOptions(quant=quant, fuse=False)  # fused attention runs on slots alone
    return load(files_of(folder), options, CPU)


def matrices(model: PreTrainedModel) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def test_modules_around_quantised_products_are_not_fused(folder: Path) -> None:
    found = loaded(folder, "nf4")
    expected = probe_logits(found)
    assert fuse(found).fused == ("norm", "layer", "decoder")
    assert relative_error(probe_logits(found), expected) < 0.02
    assert len(matrices(found.model)) == 4 * 7 + 1


@pytest.mark.parametrize("quant", FOUR_BITS)
def test_four_bits_reach_every_matrix_but_the_head(folder: Path, quant: str) -> None:
    found = matrices(loaded(folder, quant).model)
    assert type(found.pop("lm_head")) is torch.nn.Linear
    assert len(found) == 4 * 7
    for matrix in found.values():
        assert type(matrix).__name__ == "Linear4bit"
        assert matrix.weight.dtype == torch.uint8
        assert matrix.weight.quant_type == ("fp4" if quant == "fp4" else "nf4")
        assert matrix.compute_dtype == torch.bfloat16


@pytest.mark.parametrize("quant", FOUR_BITS)
def test_answers_are_those_of_transformers_while_the_budget_holds_all(folder: Path, quant: str) -> None:
    config = quantisation(folder, quant, torch.float32, CPU, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map={"": CPU}, attn_implementation="eager"
    )
    ids = torch.tensor([PROMPT])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
    engine = make_engine(loaded(folder, quant), "64tok")
    answer = answers(engine, [Request("a", tuple(PROMPT), max_tokens=NEW_TOKENS)])["a"]
    assert list(answer.ids) == expected[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("quant", FOUR_BITS)
def test_a_matrix_of_uneven_rows_stays_as_it_is_on_a_cpu(uneven: Path, quant: str) -> None:
    held = loaded(uneven, quant).model
    for name, matrix in matrices(held).items():
        is_left = name == "lm_head" or name.endswith("down_proj")
        assert type(matrix).__name__ == ("Linear" if is_left else "Linear4bit"), name


@pytest.mark.parametrize("quant", FOUR_BITS)
def test_a_trained_model_answers_nearly_as_it_did(quant: str) -> None:
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        whole, fewer = (loaded(demo_folder(), kind).model for kind in ("none", quant))
        for model in (whole, fewer):
            model.set_attn_implementation("eager")
        expected, found = whole(ids).logits.log_softmax(-1), fewer(ids).logits.log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    assert float(divergence) < 0.5


@pytest.mark.matrix
def test_bitsandbytes_says_nothing_on_the_way() -> None:
    code, out, err = finish(start("-q", "run", "demo", "Hello", "--quant", "nf4", "-n", "3"))
    assert (code, err) == (0, "") and out.strip()


def test_without_bitsandbytes_the_flag_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="--quant nf4 needs bitsandbytes; pip install bitsandbytes"):
        quantisation(folder, "nf4", torch.float32, CPU, trust_remote_code=False)


def test_a_quantised_checkpoint_loads_as_it_is(folder: Path, tmp_path: Path) -> None:
    config = quantisation(folder, "nf4", torch.bfloat16, CPU, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.bfloat16, device_map={"": CPU}
    )
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    matrix = matrices(loaded(tmp_path, "none").model)["model.layers.0.mlp.up_proj"]
    assert type(matrix).__name__ == "Linear4bit" and matrix.weight.quant_type == "nf4"
