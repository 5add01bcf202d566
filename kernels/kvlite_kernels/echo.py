"""Attention of queries that come once more from behind their tokens: what keys receive, and no values.

All keys are there before such queries, so that none is hidden but by a window. One softmax gives the shares of a tile
of queries over all segments. Letters as in `reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kvlite_kernels.half_attention import IS_FAST
from kvlite_kernels.reference import CACHED_ELEMENTS, GPU_ELEMENTS, TILE_ELEMENTS, Geometry, Segment, bias_of, visible
from kvlite_kernels.statistic import Observation, reduced


def heard(
    q: Tensor, q_pos: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation
) -> Tensor:
    """The mass that keys of the last segment receive from q [B, H_Q, T, D] at `q_pos` int [B, T]: fp32 [B, H_KV, N].

    The queries attend over all segments; positions alone decide what they see. Few heads are widened at once.
    """
    num_kv_heads, group = segments[0].k.shape[1], q.shape[1] // segments[0].k.shape[1]
    is_wider = any(segment.k.dtype != _dtype(q, segments) for segment in segments)
    size = q.shape[0] * q.shape[-1] * sum(segment.k.shape[2] for segment in segments)  # of one head's keys
    most = max(1, TILE_ELEMENTS // size) if is_wider and observation.heads != "layer" else num_kv_heads
    found = []
    for start in range(0, num_kv_heads, most):
        own, asking = slice(start, start + most), slice(start * group, (start + most) * group)
        here = [_of_heads(segment, own) for segment in segments]
        sinks = geometry.sink_logits
        geometry_here = geometry if sinks is None else replace(geometry, sink_logits=sinks[asking])
        found.append(_heard(q[:, asking], q_pos, here, geometry_here, observation))
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _of_heads(segment: Segment, own: slice) -> Segment:
    """The keys of some KV heads."""
    pos = segment.pos if segment.pos.shape[1] == 1 else segment.pos[:, own]
    bias = None if segment.bias is None else segment.bias[:, own]
    return replace(segment, k=segment.k[:, own], v=segment.v[:, own], pos=pos, statistic=None, bias=bias)


def _heard(
    q: Tensor, q_pos: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation
) -> Tensor:
    """As `heard`, of all heads at once."""
    dtype, in_order = _dtype(q, segments), _in_order(segments, geometry)
    sizes = [(segment.before or 0) + segment.own if in_order else segment.k.shape[2] for segment in segments]
    seen = list(zip(segments, sizes, strict=True))
    parts = [segment.k[:, :, :size].to(dtype) for segment, size in seen]
    keys = parts[0] if len(parts) == 1 else torch.cat(parts, 2)  # [B, H_KV, N, D]
    batch, num_heads, num_queries, _ = q.shape
    num_kv_heads, num_keys = keys.shape[1:3]
    pos = None if in_order else torch.cat([segment.pos.expand(-1, num_kv_heads, -1) for segment in segments], 2)
    bias = bias_of(segments, sizes)
    total = torch.zeros(*segments[-1].k.shape[:3], device=q.device)
    most = CACHED_ELEMENTS if q.device.type == "cpu" else GPU_ELEMENTS
    tile = max(1, most // (batch * num_heads * num_keys))
    for start in range(0, num_queries, tile):
        here = slice(start, start + tile)
        hidden = None if pos is None else ~visible(q_pos[:, here], pos, geometry.window)
        shares = _shares(q[:, :, here].to(dtype), keys, hidden, geometry, bias)[..., num_keys - sizes[-1] :]
        total[..., : sizes[-1]] += reduced(shares, observation.of(here), num_kv_heads)
    return total


def _in_order(segments: Sequence[Segment], geometry: Geometry) -> bool:
    """True where it is promised that all keys but free ones at the ends are seen."""
    return geometry.window is None and all(segment.before is not None for segment in segments)


def _dtype(q: Tensor, segments: Sequence[Segment]) -> torch.dtype:
    """The dtype of products: halves only where the device multiplies them and slots hold the same."""
    is_half = IS_FAST if q.device.type == "cpu" else q.device.type == "cuda"
    is_same = all(segment.k.dtype == q.dtype for segment in segments)
    return q.dtype if is_half and is_same else torch.promote_types(q.dtype, torch.float32)


def _shares(q: Tensor, keys: Tensor, hidden: Tensor | None, geometry: Geometry, bias: Tensor | None) -> Tensor:
    """Probabilities [B, H_Q, T, N] of all keys in the dtype of q, but those `hidden` bool [B, H_KV, T, N]."""
    batch, num_heads, num_queries, dim = q.shape
    num_kv_heads, num_keys = keys.shape[1:3]
    grouped = (q * geometry.scaling).reshape(batch * num_kv_heads, -1, dim)  # before sums that float16 does not hold
    logits = torch.bmm(grouped, keys.flatten(0, 1).mT)
    logits = logits.view(batch, num_heads, num_queries, num_keys)
    if geometry.softcap is not None:
        logits = geometry.softcap * torch.tanh(logits / geometry.softcap)
    if bias is not None:
        logits.unflatten(1, (num_kv_heads, -1)).add_(bias[:, :, None, None])
    if hidden is not None:
        logits.unflatten(1, (num_kv_heads, -1)).masked_fill_(hidden[:, :, None], torch.finfo(q.dtype).min)
    if geometry.sink_logits is not None:
        sinks = geometry.sink_logits.to(q.dtype)[None, :, None, None].expand(batch, -1, num_queries, 1)
        logits = torch.cat([logits, sinks], -1)
    shares = logits.softmax(-1)[..., :num_keys]
    if hidden is not None:  # a query that sees nothing gives nothing
        shares.unflatten(1, (num_kv_heads, -1)).masked_fill_(hidden[:, :, None], 0.0)
    return shares
