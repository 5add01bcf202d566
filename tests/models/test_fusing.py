"""Fused modules compute what those they stand for do, take no memory of their own, and can be taken back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP

from kvlite.memory.format import slot_format
from kvlite.models import fusing
from kvlite.models.decoder import decodes
from kvlite.models.fused import FusedMLP, JoinedLinear, SideBySide, activation_of
from kvlite.models.fusing import fuse, probe_logits
from kvlite.models.patches import PATCHES, Patch
from kvlite.models.probe import dry_cache, probe_ids
from kvlite.models.rotary import turning_of
from kvlite.models.verify import relative_error
from kvlite_kernels.dense import DenseKernels
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted

ALL = ("norm", "rotary", "mlp", "attention", "layer", "decoder")
FITTING = {
    "llama": ALL,
    "mistral": ALL,
    "qwen2": ALL,
    "qwen3": ALL,
    "gemma2": ALL[:-1],  # with a soft cap, and norms on both sides
    "gemma3_text": ("norm", "mlp", "attention", "layer"),  # tables of its own
    "phi3": ALL,  # whose products are joined as they come
    "glm": ALL,  # an attention of the same code, a part of whose channels rotate in pairs
    "cohere": ("mlp", "attention"),  # LayerNorm
    "olmo2": ("norm", "mlp", "layer", "decoder"),  # norms over all heads
    "granite": ("norm", "rotary", "mlp", "attention"),  # a factor before each sum
    "mixtral": ("norm", "rotary", "attention", "layer", "decoder"),
    "gpt2": (),
}


@pytest.mark.parametrize("family", FITTING)
def test_patches_fit_by_what_a_module_does(family: str) -> None:
    assert fuse(admitted(tiny_model(family, SUPPORTED[family]))).fused == FITTING[family]


@pytest.mark.parametrize("family", SUPPORTED)
def test_logits_stay_what_they_were(family: str) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    expected = probe_logits(loaded)
    fused = fuse(loaded)
    assert relative_error(probe_logits(fused), expected) < 5e-6


def test_biases_are_joined_with_the_weights() -> None:
    model = tiny_model("llama", {"attention_bias": True, "mlp_bias": True})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    loaded = admitted(model)
    expected = probe_logits(loaded)
    assert fuse(loaded).fused == ALL
    assert relative_error(probe_logits(loaded), expected) < 5e-6


def test_weights_are_held_once_and_counted_the_same() -> None:
    loaded = admitted(tiny_model("qwen2", {}))
    before = (loaded.weight_bytes, loaded.num_parameters)
    fused = fuse(loaded)
    assert (fused.weight_bytes, fused.num_parameters) == before
    held = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage() for parameter in fused.model.parameters()
    }
    buffers = {buffer.data_ptr(): buffer.nbytes for buffer in fused.model.buffers()}
    assert sum(storage.nbytes() for storage in held.values()) + sum(buffers.values()) == fused.weight_bytes


def test_a_patch_that_changes_the_logits_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(FusedMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.001

    def wrong(mlp: Any, kernels: DenseKernels) -> nn.Module:
        return Wrong(JoinedLinear(mlp.gate_proj, mlp.up_proj), mlp.act_fn, mlp.down_proj, kernels)

    monkeypatch.setattr(fusing, "PATCHES", (Patch("mlp", LlamaMLP, wrong, ("gate_proj", "up_proj")),))
    loaded = admitted(tiny_model("llama", {}))
    expected = probe_logits(loaded)
    assert fuse(loaded).fused == ("decoder",)
    assert torch.equal(probe_logits(loaded), expected)
    assert all(isinstance(layer.mlp, LlamaMLP) for layer in loaded.model.model.layers)


def test_only_plain_linear_maps_are_joined() -> None:
    class Quantised(nn.Linear):
        pass

    model = tiny_model("llama", {})
    for layer in model.model.layers:
        layer.mlp.up_proj.__class__ = Quantised
        layer.self_attn.k_proj.__class__ = Quantised
    loaded = admitted(model)
    expected = probe_logits(loaded)
    assert fuse(loaded).fused == ("norm", "rotary", "attention", "layer", "decoder")
    assert relative_error(probe_logits(loaded), expected) < 5e-6
    (held,) = {type(layer.self_attn.qkv) for layer in model.model.layers}
    assert held is SideBySide


def test_a_changed_forward_is_no_longer_fitted() -> None:
    class Clipped(LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(-1, 1)

    patch = next(patch for patch in PATCHES if patch.name == "mlp")
    mlp = tiny_model("llama", {}).model.layers[0].mlp
    assert patch.fits(mlp)
    mlp.__class__ = Clipped
    assert not patch.fits(mlp)


def test_an_attention_that_rotates_otherwise_is_no_longer_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen2 import modeling_qwen2

    attention = tiny_model("qwen2", {}).model.layers[0].self_attn
    assert any(patch.fits(attention) for patch in PATCHES)
    monkeypatch.setattr(
        modeling_qwen2, "rotate_half", lambda x: torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    )
    assert not any(patch.fits(attention) for patch in PATCHES)


def test_a_layer_is_fused_only_around_fused_norms() -> None:
    layer = tiny_model("llama", {}).model.layers[0]
    assert not any(patch.fits(layer) for patch in PATCHES)


def test_a_model_with_more_between_ids_and_logits_is_called_as_it_is() -> None:
    loaded = admitted(tiny_model("llama", {}))

    class Capped(type(loaded.model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.tanh()
            return out

    assert decodes(loaded.model)
    loaded.model.__class__ = Capped
    assert not decodes(loaded.model)
    expected = probe_logits(loaded)
    fused = fuse(loaded)
    assert fused.decoder is None and "decoder" not in fused.fused
    assert relative_error(probe_logits(fused), expected) < 5e-6


@pytest.mark.parametrize("last", [1, 5])
def test_a_decoder_gives_the_logits_that_are_asked_for(last: int) -> None:
    loaded = fuse(admitted(tiny_model("qwen2", {})))
    ids = probe_ids(loaded, 5)
    pos = torch.arange(5, dtype=torch.int32)[None]
    cache = dry_cache(loaded, slot_format("auto", loaded.dtype_name), 5)
    step = cache.begin(slice(0, 1), pos, pos, (5,), None)
    assert loaded.decoder is not None
    logits = loaded.forward(ids, cache, step, last)
    assert logits.shape == (1, last, loaded.shape.vocab)
    again = dry_cache(loaded, slot_format("auto", loaded.dtype_name), 5)
    whole = replace(loaded, decoder=None).forward(ids, again, again.begin(slice(0, 1), pos, pos, (5,), None), last)
    assert relative_error(logits, whole) < 5e-6


def test_angles_that_change_with_the_length_stay_with_their_module() -> None:
    scaled = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
    loaded = fuse(admitted(tiny_model("llama", scaled)))
    assert "rotary" not in loaded.fused and "attention" in loaded.fused


ROTATING = {
    "llama": "llama",
    "olmo2": "olmo",
    "glm4_moe": "gpt_neox",
    "phi3": "phi3",
    "cohere2": "cohere",
    "glm4": "glm",
    "helium": "helium",
    "ernie4_5": "ernie4_5",
    "nanochat": None,  # the other way round
    "gpt2": None,
}


@pytest.mark.parametrize(("family", "source"), ROTATING.items())
def test_a_rotation_is_told_from_the_others(family: str, source: str | None) -> None:
    kinds = {type(module) for module in tiny_model(family, SUPPORTED[family]).modules()}
    (attention,) = (kind for kind in kinds if kind.__name__.endswith("Attention"))
    turning = turning_of(attention)
    assert (turning and turning.module.__name__.rpartition("modeling_")[2]) == source


ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "relu2": None, "xielu": None}


def test_an_activation_is_known_by_its_numbers() -> None:
    assert {name: activation_of(ACT2FN[name]) for name in ACTIVATIONS} == ACTIVATIONS


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu", "relu", "relu2"])
def test_an_mlp_keeps_its_activation(activation: str) -> None:
    loaded = admitted(tiny_model("llama", {"hidden_act": activation}))
    expected = probe_logits(loaded)
    assert fuse(loaded).fused == ALL
    assert relative_error(probe_logits(loaded), expected) < 5e-6


def test_fusing_leaves_the_loaded_model_otherwise_as_it_was() -> None:
    loaded = admitted(tiny_model("llama", {}))
    assert replace(fuse(loaded), fused=(), decoder=None) == loaded
