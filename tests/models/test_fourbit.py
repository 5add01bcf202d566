"""4-bit weights on kvlite's kernels, in Triton's interpreter: the same logits and bytes, joined, and taken back."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kvlite.catalog.names import demo_folder
from kvlite.engine.request import Request
from kvlite.models import loading
from kvlite.models.fusing import multiply_packed, probe_logits
from kvlite.models.loaded import LoadedModel
from kvlite.models.loading import load
from kvlite.models.quantised import FourBitLinear, our_form
from kvlite.models.verify import relative_error
from kvlite.options import ModelOptions
from kvlite_kernels.choice import choose_ops
from kvlite_kernels.nf4 import FourBit
from kvlite_kernels.triton_set.fused_ops import TritonOps
from kvlite_kernels.triton_set.tiles import INTERPRETER
from tests.architectures import tiny_model
from tests.engine_for_tests import answers, make_engine
from tests.matrix import but_few
from tests.model_folder import files_of

pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("bitsandbytes", "triton"))
        or os.environ.get("TRITON_INTERPRET") != "1",
        reason="needs bitsandbytes, triton and TRITON_INTERPRET=1",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # bitsandbytes and torch's own
]
CPU = torch.device("cpu")
JOINED = {"four-bit", "mlp", "attention"}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU 4bit is not bitsandbytes', which packs anew for AVX-512 there; a GPU, and this test, keep its bytes."""
    import bitsandbytes.nn.modules

    monkeypatch.setattr(loading, "packed_bits", lambda quant, device: 0)
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny qwen2, whose queries, keys and values have biases, with the built-in model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_model("qwen2", {"vocab_size": 1024, "intermediate_size": 128, "num_hidden_layers": 1})
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, folder)
    return folder


@cache
def on_triton(folder: Path, quant: str) -> LoadedModel:
    """A model that no test changes."""
    return loaded(folder, quant, kernels="triton")


def loaded(folder: Path, quant: str = "nf4", **options: Any) -> LoadedModel:
    wanted = ModelOptions(quant=quant, dtype="float16", **options)
    return load(files_of(folder), wanted, CPU)


def maps(model: nn.Module) -> list[FourBitLinear]:
    return [module for module in model.modules() if isinstance(module, FourBitLinear)]


@pytest.mark.parametrize("quant", but_few(["nf4", "4bit", "fp4"], "4bit"))
def test_logits_are_those_of_bitsandbytes(folder: Path, quant: str) -> None:
    expected = probe_logits(loaded(folder, quant, fuse=False))
    ours = on_triton(folder, quant)
    assert set(ours.fused) >= JOINED
    assert len(maps(ours.model)) == 4  # queries, keys and values; out; gate and up; down
    assert relative_error(probe_logits(ours), expected) < 0.003


def test_answers_are_those_of_bitsandbytes(folder: Path) -> None:
    request = Request("a", tuple(range(5, 45)), max_tokens=4)  # prefilled in more rows than the kernels take
    models = (loaded(folder), on_triton(folder, "nf4"))
    expected, found = (answers(make_engine(model, "64tok"), [request])["a"] for model in models)
    assert found.ids == expected.ids


@pytest.mark.parametrize("quant", but_few(["nf4", "4bit"], "4bit"))
def test_weights_are_held_once_and_counted_as_what_they_are(folder: Path, quant: str) -> None:
    theirs, ours = loaded(folder, quant, fuse=False), on_triton(folder, quant)
    assert ours.model.num_parameters() == theirs.model.num_parameters()
    weights = [map.weight for map in maps(ours.model)]
    assert all(weight.numel() == weight.untyped_storage().nbytes() for weight in weights)
    elements = sum(2 * weight.numel() for weight in weights)
    codes = (7 - 4) * 64  # the code book of each map; joined ones share it
    unpacked = ours.weight_bytes - theirs.weight_bytes + codes
    if quant == "nf4":
        assert unpacked == 0
    else:  # 4 bytes for a block's scale instead of 1, and no scales of scales, their code and their mean
        assert unpacked == elements // 64 * 3 - 7 * (4 + 256 * 4 + 4)


def test_each_matrix_is_read_once_and_few_rows_never_reach_bitsandbytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = on_triton(folder, "nf4")
    counted = Counting()
    for map in maps(ours.model):
        monkeypatch.setattr(map, "ops", counted)
        monkeypatch.setattr(map, "_multiply_rows", None)
    probe_logits(ours)  # three chunks
    assert counted.count == 3 * 4


def test_what_changes_the_logits_is_taken_back(folder: Path) -> None:
    held = loaded(folder, fuse=False)
    expected = probe_logits(held)
    tried = multiply_packed(held, Counting(factor=1.05))
    assert tried.fused == () and "four-bit, 7 modules: off by " in tried.refused[0]
    assert maps(held.model) == [] and torch.equal(probe_logits(held), expected)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_without_triton_kernels_bitsandbytes_multiplies(folder: Path, kernels: str) -> None:
    assert choose_ops(kernels, CPU).most_four_bit_rows(torch.float16) == 0
    assert maps(loaded(folder, kernels=kernels).model) == []


def test_only_maps_that_the_kernels_can_multiply_with_are_taken(folder: Path) -> None:
    ops = choose_ops("triton", CPU)
    module = next(m for m in loaded(folder, fuse=False).model.modules() if type(m).__name__ == "Linear4bit")
    assert our_form(module, ops) is not None
    assert our_form(nn.Linear(64, 64), ops) is None
    module.compute_dtype = torch.bfloat16  # which the interpreter does not multiply in
    assert our_form(module, ops) is None
    module.compute_dtype = torch.float16
    module.weight.quant_state.packing_format_for_cpu = True
    assert our_form(module, ops) is None


class Counting(TritonOps):
    """Products that are counted, and multiplied by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(INTERPRETER)
        self.factor, self.count = factor, 0

    def multiply_four_bit(self, x: Tensor, weight: FourBit, bias: Tensor | None) -> Tensor:
        self.count += 1
        return super().multiply_four_bit(x, weight, bias) * self.factor
