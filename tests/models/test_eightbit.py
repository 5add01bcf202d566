"""A head in 8 bits: nearly the same logits in fewer bytes, counted as what is held, or the head as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kvlite.memory.prediction import WeightFacts, weight_term
from kvlite.models.eightbit import CODED_HEAD, TOLERANCE, EightBitHead, with_coded_head
from kvlite.models.fusing import fuse, probe_logits
from kvlite.models.gate import relative_error
from kvlite.models.loaded import LoadedModel
from kvlite_kernels.int8 import HostProducts
from tests.architectures import tiny_model
from tests.engine_for_tests import admitted

VOCAB, HIDDEN = 128, 64


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("products", [None, HostProducts()], ids=["twin", "cpu"])
def test_logits_are_nearly_the_same_and_what_is_held_is_counted(is_tied: bool, products: Any) -> None:
    loaded = fuse(admitted(tiny_model("llama", {"tie_word_embeddings": is_tied})))
    expected, before = probe_logits(loaded), loaded.weight_bytes
    found, obstacle = with_coded_head(loaded, products)
    assert obstacle is None and found.fused[-1] == CODED_HEAD
    assert 1e-4 < relative_error(probe_logits(found), expected) < TOLERANCE
    released = 0 if is_tied else VOCAB * HIDDEN * 4
    assert found.weight_bytes == before + VOCAB * (HIDDEN + 4) - released
    facts = WeightFacts(before, before // 4, is_tied, is_quantised=False, codes_head=True)
    planned = weight_term(found.shape, facts, "none").predicted_bytes
    assert planned is not None and planned - (before // 4) * 4 == found.weight_bytes - before


def test_embeddings_that_are_shared_stay_as_they_were() -> None:
    loaded = admitted(tiny_model("llama", {"tie_word_embeddings": True}))
    before = loaded.model.get_input_embeddings().weight.clone()
    with_coded_head(loaded, None)
    assert torch.equal(loaded.model.get_input_embeddings().weight, before)


def test_a_bias_is_kept() -> None:
    linear = nn.Linear(HIDDEN, VOCAB)
    nn.init.normal_(linear.bias, std=5.0)
    x = torch.randn(2, 3, HIDDEN)
    with torch.inference_mode():
        assert relative_error(EightBitHead(linear, None)(x), linear(x)) < 0.01


def test_rows_beyond_what_a_kernel_takes_go_to_the_twin() -> None:
    calls = []

    class Recording:
        most_rows = 2

        def __call__(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
            calls.append(len(x))
            return x.new_zeros(len(x), len(weight.codes))

    head = EightBitHead(nn.Linear(HIDDEN, VOCAB, bias=False), Recording())
    with torch.inference_mode():
        assert not head(torch.randn(2, 1, HIDDEN)).any()
        assert head(torch.randn(1, 3, HIDDEN)).any()
    assert calls == [2]


def test_a_head_that_codes_do_not_do_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = admitted(tiny_model("llama", {}))
    monkeypatch.setattr("kvlite.models.eightbit.TOLERANCE", 1e-6)
    expected = probe_logits(loaded)
    found, obstacle = with_coded_head(loaded, None)
    assert found is loaded and obstacle is not None and "differ by" in obstacle
    assert torch.equal(probe_logits(loaded), expected)


def test_a_kernel_that_does_not_compile_leaves_the_head() -> None:
    loaded: LoadedModel = admitted(tiny_model("llama", {}))

    class CompilationError(Exception):
        __module__ = "triton.compiler.errors"

    class Broken:
        most_rows = 2

        def __call__(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
            raise CompilationError

    found, obstacle = with_coded_head(loaded, Broken())
    assert (found, obstacle) == (loaded, "products with 8 bits do not run here")
    assert isinstance(loaded.model.get_output_embeddings(), nn.Linear)


def test_what_is_no_failure_of_the_code_is_not_hidden() -> None:
    class Stopped:
        most_rows = 2

        def __call__(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_coded_head(admitted(tiny_model("llama", {})), Stopped())
