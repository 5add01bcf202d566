"""The whole model as one function from token ids to logits: without masks, caches and output objects to carry along."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.mixtral.modeling_mixtral import MixtralForCausalLM, MixtralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from kvlite.models.same_forward import behaves_as

_MODELS = (LlamaModel, MistralModel, MixtralModel, Qwen2Model)
_HEADS = (LlamaForCausalLM, MixtralForCausalLM)


class Decoder(Protocol):
    """ids and positions int64 [B, T] -> the logits of the `last` positions [B, last, V]."""

    def __call__(self, ids: Tensor, positions: Tensor, last: int) -> Tensor: ...


class FusedDecoder:
    """Embeds, runs the layers, norms and multiplies with the head, over the modules of `model`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, ids: Tensor, positions: Tensor, last: int) -> Tensor:
        """See Decoder."""
        whole: Any = self._model._modules
        parts = whole["model"]._modules
        hidden = parts["embed_tokens"].forward(ids)
        tables = parts["rotary_emb"].forward(hidden, positions)
        for layer in parts["layers"]._modules.values():
            hidden = layer.forward(
                hidden,
                attention_mask=None,
                position_embeddings=tables,
                position_ids=positions,
                past_key_values=None,
                use_cache=False,
            )
        hidden = parts["norm"].forward(hidden if last == hidden.shape[1] else hidden[:, -last:])
        logits: Tensor = whole["lm_head"].forward(hidden)
        return logits


def decodes(model: nn.Module) -> bool:
    """Whether a causal language model does no more than a FusedDecoder."""
    body: Any = model._modules.get("model")
    if body is None or not any(behaves_as(type(body), kind) for kind in _MODELS):
        return False
    is_whole = len(body.layers) == body.config.num_hidden_layers
    return is_whole and any(behaves_as(type(model), kind) for kind in _HEADS)
