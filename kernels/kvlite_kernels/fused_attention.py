"""Attention of several queries through torch's fused kernels, which give the log-sum-exp and never form the logits.

The statistic is a second pass over the queries that count, with that log-sum-exp: a tile of logits, its exponential, a
sum per key. What the kernel does not take is left to `reference`, which both are held against. Letters as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kvlite_kernels import half_attention, reference
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.reference import Geometry, Segment, merge, visible
from kvlite_kernels.statistic import Observation

STATISTIC_ELEMENTS = 1 << 18
"""Most logits held at once for the statistic: 1 MiB in fp32 stays in a core's own cache."""

_LOG2_E = math.log2(math.e)

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_of_gpu = torch.ops.aten._scaled_dot_product_flash_attention

_HALVES = (torch.bfloat16, torch.float16)
_OFF = 0.03
"""The most by which a kernel on a GPU may be off in a problem of numbers around 1, in half precision."""


class _Keys(NamedTuple):
    """Keys and values [B * H_KV, N, D] that are attended at once: all, causally, or with `mask` [.., T, N]."""

    k: Tensor
    v: Tensor
    is_causal: bool = False
    mask: Tensor | None = None


class _Asking(NamedTuple):
    """The queries that count: q [B, H_Q, T, D], where they stand [B, T], their log-sum-exp [B, H_Q, T] and weight."""

    q: Tensor
    q_pos: Tensor
    lse: Tensor
    observation: Observation


def suits(q: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None) -> bool:
    """True where a kernel takes it: several queries, no soft cap, values as wide as keys.

    On a CPU a statistic must be a sum of probabilities over heads and queries, of keys without a bias: any other needs
    logits. On a GPU nobody may observe, and keys must be halves in order, without a bias.
    """
    is_even = all(segment.k.shape[-1] == segment.v.shape[-1] for segment in segments)
    adds_up = observation is None or (observation.kind is Statistic.MASS and observation.heads != "max")
    is_unbiased = all(segment.bias is None for segment in segments)
    if q.shape[2] == 1 or geometry.softcap is not None or not is_even:
        return False
    if q.device.type != "cuda":
        return q.device.type == "cpu" and adds_up and (observation is None or is_unbiased)
    in_order = all(one.before is not None and q.dtype == one.k.dtype == one.v.dtype in _HALVES for one in segments)
    return observation is None and is_unbiased and in_order and serves(q.device, q.dtype, q.shape[-1])


@cache
def serves(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """True where the kernel of `device` gives what the formulas do for a small problem, found out once."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, count, dim, generator=generator).to(dtype) for count in (6, 17, 17))
    k, v = k[:, :2], v[:, :2]
    q_pos, pos = torch.arange(11, 17).expand(2, -1), torch.arange(17).expand(2, 2, -1)
    geometry = Geometry(dim**-0.5)
    expected, _ = reference.attend_segments(q.double(), q_pos, [Segment(k.double(), v.double(), pos)], geometry, None)
    try:
        there = Segment(k.to(device), v.to(device), pos.to(device), None, 11, 6)
        out, _ = _attend_all(q.to(device), q_pos.to(device), [there], geometry, in_order=True)
    except (RuntimeError, TypeError, AttributeError):  # it is not there, or does not take this
        return False
    return bool((out.cpu().double() - expected).abs().max() <= _OFF)


def attend_fused(
    q: Tensor, q_pos: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None
) -> tuple[Tensor, list[Tensor]]:
    """As `reference.attend_segments`, of what `suits`; products are of the dtype of q where slots hold the same."""
    num_queries = q.shape[2]
    in_order = all(segment.before is not None for segment in segments)
    if half_attention.suits(q, segments, geometry):
        given = half_attention.attend_half(q, segments, geometry, observation)
        if given is not None:
            return given
    if half_attention.suits_among(q, segments, geometry, observation):
        out = half_attention.attend_among(q, q_pos, segments[0], geometry)
        if out is not None:
            return out, []
    tile = num_queries if in_order else _rows(q.shape[0] * segments[0].k.shape[1], segments)
    parts = []
    for start in range(0, num_queries, tile):
        here = slice(start, start + tile)
        parts.append(_attend_all(q[:, :, here], q_pos[:, here], segments, geometry, in_order))
    out, lse = parts[0] if len(parts) == 1 else (torch.cat([part[i] for part in parts], 2) for i in range(2))
    if observation is None:
        return out, []
    first = observation.first(num_queries)
    asking = _Asking(q[:, :, first:], q_pos[:, first:], lse[:, :, first:], observation.of(slice(first, None)))
    return out, [_mass(asking, segment, geometry, first if in_order else None) for segment in segments]


def _rows(heads: int, segments: Sequence[Segment], elements: int | None = None) -> int:
    """The queries whose logits, or whatever there is one of for a query and a key, are held at once."""
    num_keys = sum(segment.k.shape[2] for segment in segments)
    return max(1, (elements or reference.TILE_ELEMENTS) // (heads * num_keys))


def _attend_all(
    q: Tensor, q_pos: Tensor, segments: Sequence[Segment], geometry: Geometry, in_order: bool
) -> tuple[Tensor, Tensor]:
    """Out [B, H_Q, T, D] in the dtype of q and the log-sum-exp [B, H_Q, T] over all segments."""
    grouped, outs, lses = _grouped(q, segments[0].k.shape[1]), [], []
    for segment in segments:
        for keys in _in_order(segment, q) if in_order else _by_position(segment, q, q_pos, geometry.window):
            k, v = (vectors[:, None].expand(-1, grouped.shape[1], -1, -1) for vectors in (keys.k, keys.v))
            out, lse = _fused(grouped.to(k.dtype), k, v, keys, geometry.scaling)
            if keys.mask is not None:
                lse = lse.masked_fill((keys.mask == -torch.inf).all(-1), -torch.inf)
            outs.append(out.reshape(q.shape))
            lses.append(lse.reshape(q.shape[:3]))
    out, lse = merge(outs, lses, geometry.sink_logits)
    return out.to(q.dtype), lse


def _fused(q: Tensor, k: Tensor, v: Tensor, keys: _Keys, scaling: float) -> tuple[Tensor, Tensor]:
    """The kernel of the device: out [..., T, D] and the log-sum-exp [..., T]."""
    if q.device.type == "cpu":
        out, lse = _kernel(q, k, v, is_causal=keys.is_causal, attn_mask=keys.mask, scale=scaling)
    else:
        out, lse = _kernel_of_gpu(q, k, v, 0.0, keys.is_causal, False, scale=scaling)[:2]
    return out, lse


def _in_order(segment: Segment, q: Tensor) -> Iterator[_Keys]:
    """First what every query sees, then the queries' own keys."""
    assert segment.before is not None
    for keys in _tiles(segment, _dtype(segment, q), segment.before):
        mask = None
        if segment.bias is not None:
            mask = segment.bias[..., keys].to(_dtype(segment, q)).flatten(0, 1)[:, None, None]
            mask = mask.expand(-1, -1, q.shape[2], -1)
        yield _Keys(*_numbers(segment, q, keys), mask=mask)
    if segment.own:
        yield _Keys(*_numbers(segment, q, slice(segment.before, segment.before + segment.own)), is_causal=True)


def _by_position(segment: Segment, q: Tensor, q_pos: Tensor, window: int | None) -> Iterator[_Keys]:
    """All keys, with a mask that positions give."""
    for keys in _tiles(segment, _dtype(segment, q), segment.k.shape[2]):
        hidden = ~visible(q_pos, segment.pos[:, :, keys], window)
        mask = torch.zeros(hidden.shape, dtype=_dtype(segment, q)).masked_fill_(hidden, -torch.inf)
        if segment.bias is not None:
            mask = mask + segment.bias[:, :, None, keys].to(mask.dtype)
        mask = mask.expand(-1, segment.k.shape[1], -1, -1).flatten(0, 1)[:, None]
        yield _Keys(*_numbers(segment, q, keys), mask=mask)


def _tiles(segment: Segment, dtype: torch.dtype, stop: int) -> Iterator[slice]:
    """The first `stop` keys, in tiles where they are widened to `dtype`."""
    batch, num_kv_heads, _, dim = segment.k.shape
    tile = max(1, stop if segment.k.dtype == dtype else reference.TILE_ELEMENTS // (batch * num_kv_heads * dim))
    for start in range(0, stop, tile):
        yield slice(start, min(start + tile, stop))


def _dtype(segment: Segment, q: Tensor) -> torch.dtype:
    """The dtype of products: that of q where keys and values have it too."""
    same = q.dtype == segment.k.dtype == segment.v.dtype
    return q.dtype if same else torch.promote_types(q.dtype, torch.float32)


def _numbers(segment: Segment, q: Tensor, keys: slice) -> tuple[Tensor, Tensor]:
    """Some of the keys and values, [B * H_KV, N, D]."""
    k, v = (vectors[:, :, keys].to(_dtype(segment, q)).flatten(0, 1) for vectors in (segment.k, segment.v))
    return k, v


def _grouped(x: Tensor, num_kv_heads: int) -> Tensor:
    """[B, H_Q, T, ...] -> [B * H_KV, G, T, ...]."""
    grouped: Tensor = x.unflatten(1, (num_kv_heads, -1)).flatten(0, 1)
    return grouped


def _mass(asking: _Asking, segment: Segment, geometry: Geometry, first: int | None) -> Tensor:
    """The probability that each key of a segment receives from the queries, by weight: [B, H_KV, N].

    exp(x - lse) times weight over G is one power of 2, whose exponent the product gives. `first` is the number of the
    first query where all keys stand in order, else None.
    """
    q, q_pos, lse, observation = asking
    batch, num_kv_heads, num_keys = segment.k.shape[:3]
    dtype = torch.promote_types(q.dtype, torch.float32)
    total = torch.zeros(batch, num_kv_heads, num_keys, dtype=dtype)
    grouped, group = _grouped(q.to(dtype), num_kv_heads), q.shape[1] // num_kv_heads
    share = (observation.weight.to(dtype) / group).log2()[:, None] - lse.to(dtype) * _LOG2_E
    share = _grouped(share.masked_fill_(lse == -torch.inf, -torch.inf), num_kv_heads)[..., None]
    rows = _rows(len(grouped) * group, [segment], STATISTIC_ELEMENTS)
    before = 0 if first is None or segment.before is None else segment.before
    seen = num_keys if first is None else before + segment.own
    for keys in _tiles(segment, dtype, seen):
        k = segment.k[:, :, keys].to(dtype).flatten(0, 1).mT
        for start in range(0, q.shape[2], rows):
            here = slice(start, start + rows)
            rows_of_q, shift = (x[:, :, here].flatten(1, 2) for x in (grouped, share))
            powers = torch.baddbmm(shift, rows_of_q, k, alpha=geometry.scaling * _LOG2_E).exp2_()
            by_head = powers.unflatten(1, (group, -1))  # [B * H_KV, G, T, N]
            if first is None:
                hidden = ~visible(q_pos[:, here], segment.pos[:, :, keys], geometry.window)
                hidden = hidden.expand(-1, num_kv_heads, -1, -1).flatten(0, 1)
                by_head.masked_fill_(hidden[:, None], 0.0)
            elif segment.own and keys.stop > before:
                by_head.tril_(before + first + start - keys.start)
            total[:, :, keys] += powers.sum(1).unflatten(0, (batch, num_kv_heads))
    return total.mean(1, keepdim=True).expand_as(total) if observation.heads == "layer" else total
