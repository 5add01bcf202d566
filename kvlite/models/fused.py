"""Modules that compute what their transformers namesakes do, in fewer and larger operations, over the same weights.

A token of a small model is bound by the price of each call, so they look their parts up in `_modules` and call
`forward` itself: `nn.Module.__getattr__` and `__call__` cost as much as a small operation each.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kvlite.models.attention_interface import attention
from kvlite.models.block_linear import join_blocks
from kvlite.models.packed import join_packed
from kvlite.models.quantised import join_four_bit
from kvlite_kernels.fused_ops import FusedOps, Norm


def join(*parts: Any) -> nn.Module | None:
    """Linear maps of one input as one, of which they become views, with their outputs one after another.

    None unless all are plain, or packed alike, all with a bias or none.
    """
    if len({getattr(part, "bias", None) is not None for part in parts}) > 1:
        return None
    if not all(type(part) is nn.Linear and type(part.weight) is nn.Parameter for part in parts):  # not quantised
        return join_packed(parts) or join_four_bit(parts) or join_blocks(parts)
    joined = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=False, device="meta")
    joined.weight = _joined([part.weight for part in parts])
    if parts[0].bias is not None:
        joined.bias = _joined([part.bias for part in parts])
    return joined


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    joined = torch.cat([part.data for part in parts])
    for part, view in zip(parts, joined.split([len(part) for part in parts]), strict=True):
        part.data = view  # no second copy of the weights, neither now nor where the patch is taken back
    return nn.Parameter(joined, requires_grad=False)


class FusedRMSNorm(nn.Module):
    """Root-mean-square normalisation in one operation; `offset` is added to the weights, which are then fp32."""

    def __init__(self, weight: nn.Parameter, eps: float, ops: FusedOps, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = weight if offset == 0.0 else nn.Parameter(weight.data.float() + offset, requires_grad=False)
        self.eps = eps
        self.ops = ops

    @property
    def norm(self) -> Norm:
        """Weight and eps as operations take them."""
        weight = self._parameters["weight"]
        assert weight is not None
        return Norm(weight, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape and dtype."""
        return self.ops.rms_norm(x, self.norm)


class FusedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), where `gate_up` gives both at once and `activation` is the name of act."""

    def __init__(self, gate_up: nn.Module, activation: str, down_proj: nn.Module, ops: FusedOps) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.activation = activation
        self.down_proj = down_proj
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        parts: Any = self._modules
        out: Tensor = parts["down_proj"].forward(self.ops.gated(parts["gate_up"].forward(x), self.activation))
        return out


class FusedAttention(nn.Module):
    """Attention on slots: queries, keys and values in one product, `qkv`, normed and rotated together."""

    def __init__(self, module: Any, qkv: Any, ops: FusedOps, softcap: float | None = None) -> None:
        super().__init__()
        self.qkv = qkv
        self.q_norm, self.k_norm = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
        self.o_proj = module.o_proj
        self.layer_idx: int = module.layer_idx
        self.head_dim: int = module.head_dim
        self.scaling: float = module.scaling
        self.softcap = softcap
        self.ops = ops
        self.num_key_value_groups: int = module.num_key_value_groups
        self.eager = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
        kv_heads = self.qkv.out_features // self.head_dim // (self.num_key_value_groups + 2)
        self._counts = (self.num_key_value_groups * kv_heads, kv_heads)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **_: Any,  # caches, which slots do without
    ) -> tuple[Tensor, Any]:
        """hidden_states [B, T, hidden], cos and sin [B, T, R] -> [B, T, hidden] and weights, if any.

        A mask says that the model runs without slots, on transformers' own attention: slots need none.
        """
        parts: Any = self._modules
        batch, tokens = hidden_states.shape[:2]
        heads = parts["qkv"].forward(hidden_states).view(batch, tokens, -1, self.head_dim)  # H_Q + 2 H_KV heads
        norms = None if parts.get("q_norm") is None else (parts["q_norm"].norm, parts["k_norm"].norm)
        qk = self.ops.rotate(heads, self._counts, *position_embeddings, norms)
        q, k = qk.transpose(1, 2).split_with_sizes(self._counts, 1)
        v = heads.narrow(2, sum(self._counts), self._counts[1]).transpose(1, 2)
        attend = attention if attention_mask is None else self.eager
        out, weights = attend(self, q, k, v, attention_mask, scaling=self.scaling, softcap=self.softcap)
        return parts["o_proj"].forward(out.view(batch, tokens, -1)), weights


class FusedLayer(nn.Module):
    """A decoder layer that adds to its residual together with the norms before and after the sum.

    `norms` are FusedRMSNorm, or None where the layer has none: before and after the attention, before and after the
    MLP. The one before the attention may be any module.
    """

    def __init__(self, layer: Any, norms: Sequence[Any], ops: FusedOps) -> None:
        super().__init__()
        self.self_attn = layer.self_attn
        self.mlp = layer.mlp
        self.before_attention, self.after_attention, self.before_mlp, self.after_mlp = norms
        self.ops = ops

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """hidden_states [B, T, hidden] -> the same shape; the options are the attention's."""
        parts: Any = self._modules
        after_attention, after_mlp = parts.get("after_attention"), parts.get("after_mlp")
        normed = parts["before_attention"].forward(hidden_states)
        out, _ = parts["self_attn"].forward(hidden_states=normed, **options)
        after = None if after_attention is None else after_attention.norm
        total, normed = self.ops.add_norm(out, hidden_states, parts["before_mlp"].norm, after)
        out = parts["mlp"].forward(normed)
        return total + out if after_mlp is None else self.ops.norm_add(out, total, after_mlp.norm)


class FusedDecoder:
    """The whole model as one function from token ids to logits, without masks, caches and outputs to carry along.

    It saves 0.1 ms of processor time or more a token: a fifth of the built-in model's step, little of SmolLM2-135M's.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, ids: Tensor, positions: Tensor, kept: slice | Tensor) -> Tensor:
        """ids and positions int64 [B, T] -> the logits of the positions `kept`, which ascend, [B, N, V].

        Of an empty slice what the layers give is not looked at.
        """
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
        if isinstance(kept, slice) and kept.start == kept.stop:
            nothing: Tensor = hidden[:, kept]
            return nothing
        is_all = isinstance(kept, slice) and kept == slice(0, hidden.shape[1])
        hidden = parts["norm"].forward(hidden if is_all else hidden[:, kept])
        logits: Tensor = whole["lm_head"].forward(hidden)
        return logits
