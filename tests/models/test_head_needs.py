"""Measuring what heads need, on tiny models and on rows of made-up numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from kvlite.errors import UsageError
from kvlite.models.head_needs import SHARES, fingerprint, kept_by_head, measure_needs, read_twice
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted


def build(family: str) -> PreTrainedModel:
    return tiny_model(family, SUPPORTED[family])


@given(st.integers(0, 2**16))
def test_heads_keep_the_share_in_all_and_more_where_keys_are_needed_more(seed: int) -> None:
    peaks = torch.rand(3, 200, generator=torch.Generator().manual_seed(seed))
    kept = kept_by_head([peaks[:1] * 0.2, peaks[1:2] * 0.5, peaks[2:]])
    for share, heads in zip(SHARES, kept, strict=True):
        assert float(heads.mean()) == pytest.approx(max(share, 4 / 200), abs=0.01)
        assert heads[0] <= heads[1] <= heads[2]


def test_a_key_is_needed_as_much_as_the_repetition_looks_at_it() -> None:
    """A head with silent keys spreads its probability evenly, so that its keys reach an equal share at most."""
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[:16] = 0.0
    loaded = admitted(model)
    silent, other = read_twice(loaded, "", [1])[0]
    assert float(silent.max()) == pytest.approx(1 / (len(silent) + 2), rel=0.05)  # the first query of the repetition
    assert float(other.max()) > float(silent.max())


@pytest.mark.parametrize("name", ["gemma2", "gemma3n_text", "lfm2", "gpt_oss", "deepseek_v3"])
def test_layers_that_slide_or_hold_state_need_nothing(name: str) -> None:
    loaded = admitted(build(name))
    found = measure_needs(loaded, ["one", "two"])
    expected = [layer.kv_heads if layer.kind == "full" else 0 for layer in loaded.shape.layers]
    assert [len(heads) for heads in found.at(0.2)] == expected
    assert found.require(loaded.shape, "it") is found


def test_a_profile_of_other_heads_is_refused() -> None:
    found = measure_needs(admitted(build("llama")), ["one"])
    with pytest.raises(UsageError, match="other heads"):
        found.require(admitted(build("gemma2")).shape, "it")


def test_a_model_whose_layers_all_slide_has_none() -> None:
    with pytest.raises(UsageError, match="no layer"):
        measure_needs(admitted(build("mistral")), ["one"])


def test_the_fingerprint_changes_with_norms_and_not_with_the_dtype() -> None:
    model = build("qwen2")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand_like(parameter).to(torch.bfloat16))
    loaded = admitted(model)
    before = fingerprint(loaded)
    assert fingerprint(admitted(model.to(torch.float64).to(torch.float32))) == before
    model.model.norm.weight.data[3] += 1
    assert fingerprint(loaded) != before
