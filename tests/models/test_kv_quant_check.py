"""The check tells a model that survives quantised slots from one that does not."""

from __future__ import annotations

import pytest
import torch

from kvlite.errors import NumericError, SlotsTooCoarse
from kvlite.memory.format import FORMATS
from kvlite.models.kv_quant_check import QuantEffect, try_format
from kvlite.models.loaded import LoadedModel
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted


def with_key_biases(norm: float) -> LoadedModel:
    """A Qwen2 whose attention matters, with a key bias of this norm in every layer, as Qwen2.5 has in some."""
    model = tiny_model("qwen2", {})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2)
        for layer in model.model.layers:
            bias = torch.randn(layer.self_attn.k_proj.bias.shape, generator=generator)
            layer.self_attn.k_proj.bias.copy_(bias * norm / bias.norm())
    return admitted(model)


def test_huge_key_biases_do_not_survive_int4_and_the_refusal_says_what_to_do() -> None:
    with pytest.raises(SlotsTooCoarse, match=r"int4 slots .* nats a token.* give --kv-dtype int8 or auto") as refused:
        try_format(with_key_biases(1000.0), FORMATS["int4"], is_named=True)
    assert refused.value.exit_code == 4


def test_huge_key_biases_are_noticed_in_int8() -> None:
    effect = try_format(with_key_biases(1000.0), FORMATS["int8"], is_named=True)
    assert effect.is_noticeable and "--kv-dtype auto" in str(effect)


def test_without_them_the_same_model_survives() -> None:
    loaded = with_key_biases(0.0)
    assert not try_format(loaded, FORMATS["int8"], is_named=True).is_noticeable
    assert not try_format(loaded, FORMATS["int4"]).is_destructive


@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "gemma2", "lfm2", "gpt2"])
def test_eight_bits_keep_what_a_model_says(family: str) -> None:
    effect = try_format(admitted(tiny_model(family, SUPPORTED[family])), FORMATS["int8"])
    assert 0 < effect.nats < 0.01


def test_slots_of_the_models_own_dtype_change_nothing() -> None:
    effect = try_format(admitted(tiny_model("llama", {})), FORMATS["float32"])
    assert effect.nats == pytest.approx(0, abs=1e-6) and effect.agreement == 1


def test_no_numbers_are_a_death() -> None:
    assert QuantEffect(FORMATS["int4"], float("nan"), 1.0).is_destructive


def test_a_model_that_computes_no_numbers_is_not_blamed_on_its_slots() -> None:
    loaded = admitted(tiny_model("llama", {}))
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NumericError):
        try_format(loaded, FORMATS["int4"])


def test_the_check_leaves_a_hybrids_state_blank() -> None:
    loaded = admitted(tiny_model("lfm2", SUPPORTED["lfm2"]))
    assert loaded.state is not None
    before = try_format(loaded, FORMATS["int8"])
    assert try_format(loaded, FORMATS["int8"]) == before
