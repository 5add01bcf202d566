"""Modules that compute what their transformers namesakes do, in fewer and larger operations, over the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from kvlite.models.seam import attention


class JoinedLinear(nn.Module):
    """Several linear maps of one input as one product; the maps it was made of become views of its weights."""

    bias: Tensor | None

    def __init__(self, *parts: nn.Linear) -> None:
        super().__init__()
        self.sizes = [part.out_features for part in parts]
        self.weight = _joined([part.weight for part in parts])
        biases = [part.bias for part in parts if part.bias is not None]
        self.bias = _joined(biases) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., sum of the parts' out_features], the parts one after another."""
        return linear(x, self.weight, self.bias)


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    joined = torch.cat([part.data for part in parts])
    for part, view in zip(parts, joined.split([len(part) for part in parts]), strict=True):
        part.data = view  # no second copy of the weights, neither now nor where the patch is taken back
    return nn.Parameter(joined, requires_grad=False)


class FusedRMSNorm(nn.Module):
    """Root-mean-square normalisation in one operation; `offset` is added to the weights, which are then fp32."""

    def __init__(self, weight: nn.Parameter, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = weight if offset == 0.0 else nn.Parameter(weight.data.float() + offset, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape and dtype."""
        weight = self.weight
        return rms_norm(x.to(weight.dtype), weight.shape, weight, self.eps).to(x.dtype)


class FusedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_up = JoinedLinear(mlp.gate_proj, mlp.up_proj)
        self.act_fn = mlp.act_fn
        self.down_proj = mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        gate, up = self.gate_up(x).chunk(2, -1)
        out: Tensor = self.down_proj(self.act_fn(gate) * up)
        return out


class FusedAttention(nn.Module):
    """Attention on slots: queries, keys and values in one product, queries and keys rotated together."""

    def __init__(self, module: Any, sliding_window: int | None) -> None:
        super().__init__()
        self.qkv = JoinedLinear(module.q_proj, module.k_proj, module.v_proj)
        self.q_norm, self.k_norm = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
        self.o_proj = module.o_proj
        self.layer_idx: int = module.layer_idx
        self.head_dim: int = module.head_dim
        self.scaling: float = module.scaling
        self.sliding_window = sliding_window
        self._heads = [size // self.head_dim for size in self.qkv.sizes]

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: Any,  # masks and caches, which slots do without
    ) -> tuple[Tensor, None]:
        """hidden_states [B, T, hidden], cos and sin [B, T, D] -> [B, T, hidden] and no weights."""
        q_heads, k_heads, v_heads = self._heads
        heads = self.qkv(hidden_states).unflatten(-1, (-1, self.head_dim))  # [B, T, H_Q + 2 H_KV, D]
        qk, v = heads.split((q_heads + k_heads, v_heads), 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((q_heads, k_heads), 2)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], 2)
        cos, sin = position_embeddings
        first, second = qk.chunk(2, -1)
        qk = qk * cos[:, :, None] + torch.cat([-second, first], -1) * sin[:, :, None]
        q, k = qk.transpose(1, 2).split((q_heads, k_heads), 1)
        out, weights = attention(
            self, q, k, v.transpose(1, 2), scaling=self.scaling, sliding_window=self.sliding_window
        )
        return self.o_proj(out.flatten(2)), weights
