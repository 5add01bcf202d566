"""GGUF blocks that stay as they are, as on CUDA, in Triton's interpreter: logits, bytes, joined maps, undoing."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kvlite.catalog.files import local_files
from kvlite.catalog.model_files import ModelFiles
from kvlite.catalog.names import ModelRef
from kvlite.engine.request import Request
from kvlite.memory.prediction import weight_term
from kvlite.models import loading
from kvlite.models.block_linear import BlockEmbedding, BlockLinear, block_form
from kvlite.models.fusing import multiply_packed, probe_logits
from kvlite.models.loaded import LoadedModel
from kvlite.models.loading import load
from kvlite.models.verify import relative_error
from kvlite.options import ModelOptions
from kvlite_kernels.blocks import Blocks
from kvlite_kernels.choice import choose_ops
from kvlite_kernels.triton_set.fused_ops import TritonOps
from kvlite_kernels.triton_set.tiles import INTERPRETER
from tests.architectures import tiny_model
from tests.engine_for_tests import answers, make_engine
from tests.gguf.gguf_file import write_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs triton and TRITON_INTERPRET=1",
)
CPU = torch.device("cpu")
SIZES = {"vocab_size": 320, "num_key_value_heads": 4, "intermediate_size": 128, "num_hidden_layers": 1}
MIXED = {
    **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "Q4_0"), **dict.fromkeys(("ffn_gate", "ffn_up"), "Q4_1"),
    "attn_output": "Q5_0", "ffn_down": "Q8_0", "token_embd": "Q8_0",
}  # fmt: skip
IN_BLOCKS, WHOLE = ("triton", "auto"), "torch"


@pytest.fixture(autouse=True, scope="module")
def as_on_a_gpu() -> Iterator[None]:
    """Blocks are repacked on a CPU; a GPU, and these tests, keep them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "keeps_blocks", lambda *held: held[-1] in IN_BLOCKS)
        patch.setattr(loading, "stays_packed", lambda *held: False)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A tiny llama of mixed types, whose queries and keys are permuted in the file, and whose embeddings are tied."""
    path = tmp_path_factory.mktemp("tiny") / "model.gguf"
    model = tiny_model("llama", SIZES | {"tie_word_embeddings": True})
    return local_files(ModelRef(path=write_model(path, model, MIXED)))


@pytest.fixture(scope="module")
def ours(files: ModelFiles) -> LoadedModel:
    """A model that no test changes."""
    return loaded(files)


def loaded(files: ModelFiles, kernels: str = "triton", **options: Any) -> LoadedModel:
    return load(files, ModelOptions(dtype="float16", kernels=kernels, **options), CPU)


def maps(model: nn.Module) -> list[BlockLinear]:
    return [module for module in model.modules() if isinstance(module, BlockLinear)]


def test_logits_and_answers_are_those_of_unpacked_weights_and_few_rows_reach_the_kernels(
    files: ModelFiles, ours: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loaded(files, WHOLE)
    assert maps(whole.model) == [] and "blocks" in ours.fused
    kinds = ["Q8_0", "Q4_0", "Q5_0", "Q4_1", "Q8_0"]  # the head; queries, keys and values; out; gate and up; down
    assert sorted(map.kind for map in maps(ours.model)) == sorted(kinds)
    counted = Counting()
    for map in maps(ours.model):
        monkeypatch.setattr(map, "ops", counted)
    assert relative_error(probe_logits(ours), probe_logits(whole)) < 0.005
    assert counted.count == 3 * 5  # three chunks, each map once
    request = Request("a", tuple(range(5, 45)), max_tokens=2)  # prefilled in more rows than the kernels take
    expected, found = (answers(make_engine(model, "64tok"), [request])["a"] for model in (whole, ours))
    assert found.ids == expected.ids


def test_the_bytes_are_those_of_the_file_held_once_and_those_that_plan_says(
    files: ModelFiles, ours: LoadedModel
) -> None:
    buffers = sum(one.nbytes for name, one in ours.model.named_buffers() if "inv_freq" in name)
    predicted = weight_term(ours.shape, files.weights, "none", "cuda", "triton")
    assert ours.weight_bytes - buffers == predicted.predicted_bytes
    assert predicted.note == "Q8_0 with Q4_1, Q4_0, Q5_0, as in the file; the rest in float16"
    head, table = ours.model.get_output_embeddings(), ours.model.get_input_embeddings()
    assert type(table) is BlockEmbedding
    assert head.weight is table.weight  # so that a move to another device moves it once


def test_what_changes_the_logits_is_taken_back(files: ModelFiles) -> None:
    held = loaded(files, "auto", fuse=False)
    expected = probe_logits(held)
    tried = multiply_packed(held, Counting(factor=1.05))
    assert tried.fused == () and "blocks, 8 modules: off by " in tried.refused[0]
    assert torch.equal(probe_logits(held), expected)


def test_only_maps_that_the_kernels_are_fast_for_are_taken() -> None:
    ops = choose_ops("triton", CPU)
    map = BlockLinear.of(Blocks(torch.zeros(64, 34, dtype=torch.uint8), "Q8_0"), None, torch.float16)
    assert block_form(map, ops) is not None and block_form(map, choose_ops("torch", CPU)) is None
    assert block_form(nn.Linear(64, 64), ops) is None
    map.dtype = torch.bfloat16  # which the interpreter does not multiply in
    assert block_form(map, ops) is None


class Counting(TritonOps):
    """Products that are counted, and multiplied by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(INTERPRETER)
        self.factor, self.count = factor, 0

    def multiply_blocks(self, x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
        self.count += 1
        return super().multiply_blocks(x, weight, bias) * self.factor
