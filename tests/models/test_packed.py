"""Models in 4 and 8 bits on a CPU: what can be is packed, fused modules join it, the bytes are those planned."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from kvlite.catalog.names import demo_folder
from kvlite.catalog.weights import read_weights
from kvlite.engine.request import Request
from kvlite.memory.prediction import weight_term
from kvlite.models.fusing import probe_logits
from kvlite.models.loaded import LoadedModel
from kvlite.models.loading import load
from kvlite.models.packed import PackedEmbedding, PackedLinear
from kvlite.models.verify import relative_error
from kvlite.options import ModelOptions
from kvlite_kernels.packed import Packed4, Packed8, is_served
from tests.architectures import tiny_model
from tests.engine_for_tests import answers, make_engine
from tests.matrix import but_few
from tests.model_folder import files_of

CPU = torch.device("cpu")
BITS = {"4bit": Packed4, "8bit": Packed8}
FAMILIES = ("llama", "qwen2", "gemma3_text", "phi3", "gpt2", "mixtral", "lfm2", "falcon_h1", "opt", "nemotron")


def save(folder: Path, family: str, tied: bool, **changed: int) -> Path:
    """A tiny model with the built-in model's tokenizer."""
    sizes = {"vocab_size": 1024, "intermediate_size": 128, "tie_word_embeddings": tied, "num_key_value_heads": 4}
    tiny_model(family, sizes | changed).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, folder)
    return folder


def loaded(folder: Path, quant: str, **options: object) -> LoadedModel:
    return load(files_of(folder), ModelOptions(quant=quant, **options), CPU)  # type: ignore[arg-type]


def maps(model: PreTrainedModel) -> dict[str, PackedLinear]:
    return {name: module for name, module in model.named_modules() if type(module) is PackedLinear}


@pytest.mark.parametrize("quant", BITS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_is_packed_and_head_and_embedding_in_eight_bits(tmp_path: Path, quant: str, tied: bool) -> None:
    model = loaded(save(tmp_path, "qwen2", tied), quant, fuse=False).model
    found = maps(model)
    plain = (torch.nn.Linear, torch.nn.Embedding)
    assert not [name for name, module in model.named_modules() if isinstance(module, plain)]
    head, table = found.pop("lm_head"), model.get_input_embeddings()
    assert type(head.packed) is Packed8 and type(table) is PackedEmbedding
    assert (head.weight.data_ptr() == table.weight.data_ptr()) is tied
    assert len(found) == 4 * 7
    assert {type(one.packed) for one in found.values()} == {BITS[quant]}
    assert all(one.weight is not None and one.bias is not None for name, one in found.items() if "q_proj" in name)


def test_what_the_kernel_for_eight_bits_would_read_past_stays_as_it_is(tmp_path: Path) -> None:
    model = loaded(save(tmp_path, "llama", True, intermediate_size=104), "8bit", fuse=False).model
    kinds = {type(layer.mlp.down_proj) for layer in model.model.layers}
    assert kinds == {torch.nn.Linear} and type(model.model.layers[0].mlp.up_proj) is PackedLinear
    assert not is_served((64, 40), 8) and is_served((3, 48), 8)


@pytest.mark.parametrize("quant", BITS)
def test_fused_modules_join_packed_maps_and_answer_the_same(tmp_path: Path, quant: str) -> None:
    folder = save(tmp_path, "qwen2", True)
    plain, fused = loaded(folder, quant, fuse=False), loaded(folder, quant)
    assert fused.fused == ("norm", "mlp", "attention", "layer", "decoder") and fused.refused == ()
    assert len(maps(fused.model)) == 4 * 4 + 1
    assert fused.weight_bytes == plain.weight_bytes
    assert relative_error(probe_logits(fused), probe_logits(plain)) < 0.02
    request = Request("a", tuple(range(5, 45)), max_tokens=6)
    first, second = (answers(make_engine(model, "64tok"), [request])["a"].ids for model in (plain, fused))
    assert len(first) == len(second) == 6


@pytest.mark.parametrize("family", but_few(FAMILIES, "gemma3_text"))
def test_families_run_on_packed_weights(tmp_path: Path, family: str) -> None:
    model = loaded(save(tmp_path, family, True), "4bit")
    assert maps(model.model)
    assert bool(probe_logits(model).isfinite().all())


@pytest.mark.parametrize(("quant", "most"), [("4bit", 0.4), ("8bit", 0.01)])
def test_a_trained_model_answers_nearly_as_it_did(quant: str, most: float) -> None:
    ids = torch.tensor([[(37 * i + 5) % 1024 for i in range(20)]])
    whole = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32, attn_implementation="eager")
    fewer = loaded(demo_folder(), quant, fuse=False).model
    fewer.set_attn_implementation("eager")
    with torch.inference_mode():
        expected, found = (model(ids).logits.float().log_softmax(-1) for model in (whole, fewer))
    assert float((expected.exp() * (expected - found)).sum(-1).mean()) < most


@pytest.mark.parametrize("quant", BITS)
@pytest.mark.parametrize("tied", [True, False])
def test_packed_weights_take_what_is_predicted(tmp_path: Path, quant: str, tied: bool) -> None:
    folder = save(tmp_path, "llama", tied, hidden_size=256, head_dim=64)
    held = loaded(folder, quant, dtype="bfloat16")
    predicted = weight_term(held.shape, read_weights(folder), quant, "cpu").predicted_bytes
    assert predicted is not None
    assert held.weight_bytes == pytest.approx(predicted, rel=0.01)
