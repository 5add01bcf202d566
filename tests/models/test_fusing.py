"""Fused modules compute what those they stand for do, take no memory of their own, and can be taken back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP

from kvlite.memory.shape import ModelShape
from kvlite.models import patches
from kvlite.models.fused import FusedMLP, join
from kvlite.models.fusing import fuse, probe_logits
from kvlite.models.loaded import LoadedModel
from kvlite.models.patches import KINDS, PATCHES, Patch, activation_of, decodes, fused_form
from kvlite.models.probe import dry_cache, probe_ids
from kvlite.models.verify import admit, relative_error
from kvlite_kernels.fused_ops import TORCH_OPS, FusedOps
from tests.architectures import REPRESENTATIVES, SUPPORTED, tiny_model
from tests.engine_for_tests import admitted
from tests.matrix import but_few

ALL = ("norm", "mlp", "attention", "layer", "decoder")
FITTING = {
    "llama": ALL,
    "mistral": ALL,
    "qwen2": ALL,
    "qwen3": ALL,
    "gemma2": ALL[:-1],  # with a soft cap, and norms on both sides
    "gemma3_text": ALL[:-1],  # with norms of its heads
    "phi3": ALL,  # whose products are joined as they come
    "glm": ("norm", "mlp", "layer", "decoder"),  # an attention of the same code that calls another rotation
    "cohere": ("mlp",),  # LayerNorm, and a factor on its logits
    "olmo2": ("norm", "mlp", "decoder"),  # norms over all heads
    "granite": ("norm", "mlp", "attention"),  # a factor before each sum
    "mixtral": ("norm", "attention", "layer"),
    "gpt2": (),
}


@pytest.mark.parametrize("family", but_few(FITTING, "llama", "gemma2", "mixtral", "gpt2"))
def test_patches_fit_by_what_a_module_does(family: str) -> None:
    assert fuse(admitted(tiny_model(family, SUPPORTED[family]))).fused == FITTING[family]


@pytest.mark.parametrize("family", but_few(SUPPORTED, *REPRESENTATIVES))
def test_logits_stay_what_they_were(family: str) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    expected = probe_logits(loaded)
    fused = fuse(loaded)
    most = 6e-6 if family == "qwen3_5_moe_text" else 5e-6  # 5.2e-6 with norms and MLPs fused
    assert relative_error(probe_logits(fused), expected) < most


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
    before = (loaded.weight_bytes, loaded.model.num_parameters())
    fused = fuse(loaded)
    assert (fused.weight_bytes, fused.model.num_parameters()) == before
    held = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage() for parameter in fused.model.parameters()
    }
    buffers = {buffer.data_ptr(): buffer.nbytes for buffer in fused.model.buffers()}
    assert sum(storage.nbytes() for storage in held.values()) + sum(buffers.values()) == fused.weight_bytes


def with_wrong_mlps(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let the patch of an MLP be off by `factor`."""

    class Wrong(FusedMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * factor

    def wrong(mlp: Any, ops: FusedOps) -> nn.Module:
        gate_up = join(mlp.gate_proj, mlp.up_proj)
        assert gate_up is not None
        return Wrong(gate_up, "silu", mlp.down_proj, ops)

    mlp = next(patch for patch in PATCHES if patch.source == "llama.LlamaMLP")
    others = tuple(patch for patch in PATCHES if patch is not mlp)
    monkeypatch.setattr(patches, "PATCHES", (*others, Patch("mlp", mlp.source, mlp.code, wrong)))


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float32, 1.001), (torch.float16, 1.002), (torch.bfloat16, 1.01)], ids=str
)
def test_a_wrong_patch_is_taken_back_and_said(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, factor: float
) -> None:
    with_wrong_mlps(monkeypatch, factor)
    loaded = admitted_in(dtype)
    fused = fuse(loaded)
    assert fused.fused == ("norm", "attention", "layer", "decoder")
    (said,) = fused.refused
    assert said.startswith("mlp, 4 modules: off by ") and " from float32, more than " in said
    assert all(isinstance(layer.mlp, LlamaMLP) for layer in loaded.model.model.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_an_honest_patch_is_kept_in_every_dtype(family: str, dtype: torch.dtype) -> None:
    fused = fuse(admitted_in(dtype, family))
    assert (fused.fused, fused.refused) == (FITTING[family], () if family == "llama" else (NO_DECODER,))


NO_DECODER = "decoder: no patch fits Gemma3ForCausalLM"


def admitted_in(dtype: torch.dtype, family: str = "llama") -> LoadedModel:
    """A tiny model behind the gate, computing in `dtype`."""
    model = tiny_model(family, SUPPORTED[family])
    shape = ModelShape.from_config({**model.config.to_dict(), "dtype": str(dtype).removeprefix("torch.")})
    loaded = LoadedModel(model.to(dtype), None, shape, dtype, torch.device("cpu"), "none")  # type: ignore[arg-type]
    return admit(loaded)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_in_half_precision_a_cpu_rounds_where_transformers_rounds(family: str) -> None:
    """So greedy tokens stay those of transformers even where two of them are all but equal."""
    loaded = admitted_in(torch.bfloat16, family)
    expected = probe_logits(loaded)
    fused = fuse(loaded)
    assert fused.fused and torch.equal(probe_logits(fused), expected)


def test_what_raises_is_taken_back_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(mlp: Any, ops: FusedOps) -> nn.Module:
        return FusedMLP(nn.Linear(3, 3), "silu", mlp.down_proj, ops)

    mlp = next(patch for patch in PATCHES if patch.source == "llama.LlamaMLP")
    monkeypatch.setattr(patches, "PATCHES", (Patch("mlp", mlp.source, mlp.code, broken),))
    fused = fuse(admitted(tiny_model("llama", {})))
    assert fused.fused == ("decoder",)
    assert "mlp, 4 modules: RuntimeError: mat1 and mat2 shapes cannot be multiplied" in fused.refused[1]


def test_code_that_no_patch_was_written_from_is_named() -> None:
    refused = fuse(admitted(tiny_model("gpt2", SUPPORTED["gpt2"]))).refused
    assert refused[1] == "mlp: no patch fits GPT2MLP"


def test_running_out_of_memory_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("kvlite.models.fusing.judge", full)
    with pytest.raises(torch.OutOfMemoryError):
        fuse(admitted(tiny_model("llama", {})))


def test_only_plain_linear_maps_are_joined() -> None:
    class Quantised(nn.Linear):
        pass

    model = tiny_model("llama", {})
    for layer in model.model.layers:
        layer.mlp.up_proj.__class__ = Quantised
        layer.self_attn.k_proj.__class__ = Quantised
    fused = fuse(admitted(model))
    assert fused.fused == ("norm", "layer", "decoder")
    assert fused.refused == ("mlp: no patch fits LlamaMLP", "attention: no patch fits LlamaAttention")


def test_a_changed_forward_is_no_longer_fitted() -> None:
    class Clipped(LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(-1, 1)

    mlp = tiny_model("llama", {}).model.layers[0].mlp
    assert fused_form("mlp", mlp, TORCH_OPS) is not None
    mlp.__class__ = Clipped
    assert fused_form("mlp", mlp, TORCH_OPS) is None


def test_a_layer_is_fused_only_around_fused_norms() -> None:
    layer = tiny_model("llama", {}).model.layers[0]
    assert all(fused_form(kind, layer, TORCH_OPS) is None for kind in KINDS)


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
    cache = dry_cache(loaded, 5)
    step = cache.begin(slice(0, 1), pos, pos, (5,), None)
    assert loaded.decoder is not None
    logits = loaded.forward(ids, cache, step, last)
    assert logits.shape == (1, last, loaded.shape.vocab)
    again = dry_cache(loaded, 5)
    whole = replace(loaded, decoder=None).forward(ids, again, again.begin(slice(0, 1), pos, pos, (5,), None), last)
    assert relative_error(logits, whole) < 5e-6


ACTIVATIONS = {"silu": "silu", "gelu": None, "gelu_new": "gelu_tanh", "relu2": None, "xielu": None}


def test_an_activation_is_known_by_its_numbers() -> None:
    assert {name: activation_of(ACT2FN[name]) for name in ACTIVATIONS} == ACTIVATIONS


def test_an_mlp_keeps_its_activation() -> None:
    loaded = admitted(tiny_model("llama", {"hidden_act": "gelu_pytorch_tanh"}))
    expected = probe_logits(loaded)
    assert fuse(loaded).fused == ALL
    assert relative_error(probe_logits(loaded), expected) < 5e-6
    assert "mlp" not in fuse(admitted(tiny_model("llama", {"hidden_act": "relu"}))).fused


def test_fusing_leaves_the_loaded_model_otherwise_as_it_was() -> None:
    loaded = admitted(tiny_model("llama", {}))
    assert replace(fuse(loaded), fused=(), refused=(), decoder=None) == loaded
