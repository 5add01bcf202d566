"""Modules that compute what their transformers namesakes do, in fewer and larger operations, over the same weights.

A token of a small model is bound by the price of each call, so they look their parts up in `_modules` and call
`forward` itself: `nn.Module.__getattr__` and `__call__` cost as much as a small operation each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from kvlite.models.attention_interface import attention
from kvlite.models.fourbit import FourBitLinear, are_joinable, join_four_bit
from kvlite.models.rotary import Turning
from kvlite_kernels.dense import ACTIVATIONS, DenseKernels, Norm


class JoinedLinear(nn.Module):
    """Several linear maps of one input as one product; the maps it was made of become views of its weights."""

    bias: Tensor | None

    def __init__(self, *parts: nn.Linear) -> None:
        super().__init__()
        self.out_features = sum(part.out_features for part in parts)
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


class SideBySide(nn.Module):
    """Several linear maps of one input, whose weights cannot be joined, with their results one after another."""

    def __init__(self, *parts: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.out_features = sum(part.out_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., sum of the parts' out_features]."""
        return torch.cat([part(x) for part in self.parts], -1)


def can_join(parts: Sequence[nn.Module]) -> bool:
    """Whether `joined` makes one product of these: plain maps or 4-bit ones of ours, with a bias all or none."""
    biased = {getattr(part, "bias", None) is not None for part in parts}
    return len(biased) <= 1 and (all(type(part) is nn.Linear for part in parts) or are_joinable(parts))


def joined(*parts: Any) -> JoinedLinear | FourBitLinear | SideBySide:
    """Linear maps of one input as one product where they can be, else side by side."""
    if not can_join(parts):
        return SideBySide(*parts)
    return join_four_bit(parts) if isinstance(parts[0], FourBitLinear) else JoinedLinear(*parts)


class FusedRMSNorm(nn.Module):
    """Root-mean-square normalisation in one operation; `offset` is added to the weights, which are then fp32."""

    def __init__(self, weight: nn.Parameter, eps: float, kernels: DenseKernels, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = weight if offset == 0.0 else nn.Parameter(weight.data.float() + offset, requires_grad=False)
        self.eps = eps
        self.kernels = kernels

    @property
    def norm(self) -> Norm:
        """The norm as kernels take it."""
        weight = self._parameters["weight"]
        assert weight is not None
        return Norm(weight, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape and dtype."""
        return self.kernels.rms_norm(x, self.norm)


class FusedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), where `gate_up` gives both at once."""

    def __init__(self, gate_up: nn.Module, act_fn: nn.Module, down_proj: nn.Module, kernels: DenseKernels) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.act_fn = act_fn
        self.down_proj = down_proj
        self.kernels = kernels
        self.activation = activation_of(act_fn)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        parts: Any = self._modules
        gate_up = parts["gate_up"].forward(x)
        if self.activation is None:
            gate, up = gate_up.chunk(2, -1)
            gated = self.act_fn(gate) * up
        else:
            gated = self.kernels.gated(gate_up, self.activation)
        out: Tensor = parts["down_proj"].forward(gated)
        return out


def activation_of(act_fn: nn.Module) -> str | None:
    """The name in `kvlite_kernels.dense.ACTIVATIONS` of what computes the same numbers; None where nothing does."""
    if next(act_fn.parameters(), None) is not None:
        return None
    x = torch.linspace(-8.0, 8.0, 257, dtype=torch.float64)
    y = act_fn(x)
    for name, function in ACTIVATIONS.items():
        if torch.allclose(function(x), y, rtol=0.0, atol=1e-7):
            return name
    return None


class FusedRotary(nn.Module):
    """The rotary tables of angles that never change with the length, over the frequencies of `rotary`."""

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.rotary = rotary
        self.scaling: float = rotary.attention_scaling

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids int [B, T] -> cos and sin [B, T, R] in the dtype of x."""
        rotary: Any = self._modules["rotary"]
        angles = position_ids.unsqueeze(-1).float() * rotary._buffers["inv_freq"].float()
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos(), angles.sin()
        if self.scaling != 1.0:
            cos, sin = cos * self.scaling, sin * self.scaling
        return cos.to(x.dtype), sin.to(x.dtype)


class FusedAttention(nn.Module):
    """Attention on slots: queries, keys and values in one product where they can be, normed and turned together."""

    def __init__(
        self,
        module: Any,
        turning: Turning,
        kernels: DenseKernels,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        qkv = getattr(module, "qkv_proj", None)
        self.qkv = joined(module.q_proj, module.k_proj, module.v_proj) if qkv is None else qkv
        self.q_norm, self.k_norm = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
        self.o_proj = module.o_proj
        self.layer_idx: int = module.layer_idx
        self.head_dim: int = module.head_dim
        self.scaling: float = module.scaling
        self.sliding_window = sliding_window
        self.softcap = softcap
        self.turning = turning
        self.kernels = kernels
        self._norms_heads = isinstance(self.q_norm, FusedRMSNorm) and isinstance(self.k_norm, FusedRMSNorm)
        kv_heads = self.qkv.out_features // self.head_dim // (module.num_key_value_groups + 2)
        self._counts = (module.num_key_value_groups * kv_heads, kv_heads)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: Any,  # masks and caches, which slots do without
    ) -> tuple[Tensor, None]:
        """hidden_states [B, T, hidden], cos and sin [B, T, R] -> [B, T, hidden] and no weights."""
        parts: Any = self._modules
        batch, tokens = hidden_states.shape[:2]
        heads = parts["qkv"].forward(hidden_states).view(batch, tokens, -1, self.head_dim)  # H_Q + 2 H_KV heads
        norms = None
        if self._norms_heads:
            norms = (parts["q_norm"].norm, parts["k_norm"].norm)
        cos, sin = self.turning.tables(*position_embeddings)
        qk = self.kernels.rotate(heads, self._counts, cos, sin, self.turning.interleaved, norms)
        q, k = qk.transpose(1, 2).split_with_sizes(self._counts, 1)
        out, weights = attention(
            self,
            q,
            k,
            heads.narrow(2, sum(self._counts), self._counts[1]).transpose(1, 2),
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            softcap=self.softcap,
        )
        return parts["o_proj"].forward(out.view(batch, tokens, -1)), weights


class FusedLayer(nn.Module):
    """A decoder layer that adds to its residual together with the norms before and after the sum.

    `norms` are FusedRMSNorm, or None where the layer has none: before and after the attention, before and after the
    MLP. What comes before the attention may be any module.
    """

    NORMS = ("before_attention", "after_attention", "before_mlp", "after_mlp")

    def __init__(self, layer: Any, norms: Sequence[str | None], kernels: DenseKernels) -> None:
        super().__init__()
        self.self_attn = layer.self_attn
        self.mlp = layer.mlp
        for part, name in zip(self.NORMS, norms, strict=True):
            self.add_module(part, None if name is None else getattr(layer, name))
        self.kernels = kernels

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """hidden_states [B, T, hidden] -> the same shape; the options are the attention's."""
        parts: Any = self._modules
        before_attention, after_attention, before_mlp, after_mlp = (parts.get(name) for name in self.NORMS)
        normed = hidden_states if before_attention is None else before_attention.forward(hidden_states)
        out, _ = parts["self_attn"].forward(hidden_states=normed, **options)
        after = None if after_attention is None else after_attention.norm
        if before_mlp is not None:
            total, normed = self.kernels.add_norm(out, hidden_states, before_mlp.norm, after)
        else:
            assert after is not None
            total = normed = self.kernels.norm_add(out, hidden_states, after)
        out = parts["mlp"].forward(normed)
        return total + out if after_mlp is None else self.kernels.norm_add(out, total, after_mlp.norm)
