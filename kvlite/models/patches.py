"""The patches: a class of transformers that each was written from, and the fused module that it makes of its like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2DecoderLayer, Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention
from transformers.models.helium.modeling_helium import HeliumRMSNorm
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer, Olmo2RMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3Attention, Phi3DecoderLayer, Phi3MLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.models.seed_oss.modeling_seed_oss import SeedOssAttention

from kvlite.models.fused import FusedAttention, FusedLayer, FusedMLP, FusedRMSNorm, FusedRotary, can_join, joined
from kvlite.models.rotary import turning_of, turns
from kvlite.models.same_forward import behaves_as
from kvlite_kernels.dense import DenseKernels


@dataclass(frozen=True, slots=True)
class Patch:
    """`makes` turns a module whose forward is that of `source` into its fused form."""

    name: str
    source: type[nn.Module]
    makes: Callable[[Any, DenseKernels], nn.Module]
    parts: tuple[str, ...] = ()  # linear maps that are joined
    norms: tuple[str, ...] = ()  # what has to be fused already
    holds: Callable[[Any], bool] = lambda module: True  # what else has to be so

    def fits(self, module: nn.Module) -> bool:
        """Whether the patch stands for this module."""
        kind = type(module)
        if not behaves_as(kind, self.source) or (turns(self.source) and turning_of(kind) is None):
            return False
        parts = [getattr(module, part) for part in self.parts]
        are_fused = all(isinstance(getattr(module, norm), FusedRMSNorm) for norm in self.norms)
        return can_join(parts) and are_fused and self.holds(module)


def _norm(source: type[nn.Module], eps: str = "variance_epsilon", offset: float = 0.0) -> Patch:
    return Patch("norm", source, lambda norm, kernels: FusedRMSNorm(norm.weight, getattr(norm, eps), kernels, offset))


def _attention(
    source: type[nn.Module],
    window: Callable[[Any], int | None] = lambda module: None,
    softcap: Callable[[Any], float | None] = lambda module: None,
) -> Patch:
    def makes(module: Any, kernels: DenseKernels) -> nn.Module:
        turning = turning_of(type(module))
        assert turning is not None
        return FusedAttention(module, turning, kernels, window(module), softcap(module))

    return Patch("attention", source, makes)


def _layer(source: type[nn.Module], *norms: str | None) -> Patch:
    """`norms` are those before and after the attention, before and after the MLP."""
    fused = tuple(norm for norm in norms[1:] if norm is not None)
    return Patch("layer", source, lambda layer, kernels: FusedLayer(layer, norms, kernels), norms=fused)


def _gate_and_up(mlp: Any, kernels: DenseKernels) -> nn.Module:
    return FusedMLP(joined(mlp.gate_proj, mlp.up_proj), mlp.act_fn, mlp.down_proj, kernels)


def _gate_up(mlp: Any, kernels: DenseKernels) -> nn.Module:
    return FusedMLP(mlp.gate_up_proj, mlp.activation_fn, mlp.down_proj, kernels)


def _keeps_its_angles(rotary: Any) -> bool:
    """Whether no length changes the frequencies."""
    kind = getattr(rotary, "rope_type", None)
    return kind in {"default", "linear", "llama3", "yarn"}


def _rotary(source: type[nn.Module]) -> Patch:
    return Patch("rotary", source, lambda rotary, kernels: FusedRotary(rotary), holds=_keeps_its_angles)


def _window(module: Any) -> int | None:
    window: int | None = module.sliding_window
    return window


def _window_of_config(module: Any) -> int | None:
    window: int | None = getattr(module.config, "sliding_window", None)
    return window


_BEFORE, _AFTER = "input_layernorm", "post_attention_layernorm"  # llama's names; gemma2 takes the second at its word

PATCHES = (
    _norm(LlamaRMSNorm),
    _norm(Olmo2RMSNorm),
    _norm(HeliumRMSNorm),
    _norm(Gemma2RMSNorm, "eps", offset=1.0),
    _rotary(LlamaRotaryEmbedding),
    _rotary(Qwen2RotaryEmbedding),  # the same angles by a product, in older transformers
    Patch("mlp", LlamaMLP, _gate_and_up, ("gate_proj", "up_proj")),
    Patch("mlp", Phi3MLP, _gate_up),
    _attention(LlamaAttention),
    _attention(SeedOssAttention),
    _attention(CohereAttention),
    _attention(Qwen2Attention, _window),
    _attention(Qwen3Attention, _window),
    _attention(MistralAttention, _window_of_config),
    _attention(Phi3Attention, _window_of_config),
    _attention(Gemma2Attention, _window, lambda module: module.attn_logit_softcapping),
    _attention(Gemma3Attention, _window),
    _layer(LlamaDecoderLayer, _BEFORE, None, _AFTER, None),
    _layer(MixtralDecoderLayer, _BEFORE, None, _AFTER, None),
    _layer(Phi3DecoderLayer, _BEFORE, None, _AFTER, None),
    _layer(Olmo2DecoderLayer, None, _AFTER, None, "post_feedforward_layernorm"),
    _layer(Gemma2DecoderLayer, _BEFORE, _AFTER, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
