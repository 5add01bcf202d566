"""Launching the attention kernels on tensors: the shapes of `reference.attend_segments`, whatever the strides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from kvlite_kernels.kinds import Noise
from kvlite_kernels.reference import Geometry, Segment
from kvlite_kernels.statistic import Observation
from kvlite_kernels.triton_set import decode, prefill
from kvlite_kernels.triton_set.operand import Operand, operand
from kvlite_kernels.triton_set.scratch import Scratch
from kvlite_kernels.triton_set.tiles import FINISH_TILE, MAX_SPLITS, column_tile, decode_tile, padded, prefill_tile

ALL = 2**31 - 1
"""The window of a layer that has none."""

KEYS_PER_PART, MOST_CHANNELS = 1024, 32
"""The share of one of the programs that finish a head: of its keys, for the statistic, and of its channels."""

JOINED_TOGETHER = 8
"""Splits that are read at once where they are joined: one after another each would wait for memory."""


def attend_one(
    q: Tensor,
    q_pos: Tensor,
    held: Segment,
    geometry: Geometry,
    scratch: Scratch,
    observation: Observation | None,
) -> Tensor:
    """Attend with one query per head over slots -> out [n, H_Q, 1, D_V]; updates their statistic in place."""
    rows, num_heads, _, dim = q.shape
    k, v = operand(held.k), operand(held.v)
    kv_heads, num_keys, v_dim = *held.k.shape[1:3], held.v.shape[-1]
    group = num_heads // kv_heads
    tile = decode_tile(scratch.processor.capability, dim, v_dim, k.bits)
    splits, keys_per_split = scratch.splits(rows * kv_heads, num_keys, tile.columns)
    kind = "" if observation is None else observation.kind.value
    noise = _noise(observation)
    window = ALL if geometry.window is None else geometry.window
    q, softcap = _inner(q), geometry.softcap or 1.0
    decode.split[(rows * kv_heads, splits)](
        q, q_pos, k.data, k.scale, v.data, v.scale, held.pos, held.bias,
        None if observation is None else scratch.logits,
        scratch.max, scratch.sum, scratch.part, scratch.norm_max, scratch.norm_sum,
        geometry.scaling, softcap, window, num_keys, keys_per_split, num_keys, splits,
        *noise,
        q.stride(0), q.stride(1), q_pos.stride(0), *k.strides, *v.strides, *_heads(held.pos),
        NUM_KV_HEADS=kv_heads, G=group, D=dim, D_V=v_dim, PAD_D=padded(dim), PAD_D_V=padded(v_dim),
        ROWS=tile.rows, KEYS=tile.columns, BITS=k.bits, BITS_V=v.bits, GROUP=k.group, GROUP_V=v.group,
        RUN=k.run, RUN_V=v.run,
        HAS_CAP=geometry.softcap is not None, STATISTIC=kind,
        **tile.options,
    )  # fmt: skip
    out = torch.empty(rows, num_heads, 1, v_dim, dtype=_out_dtype(q, v), device=q.device)
    over_layer = observation is not None and observation.heads == "layer"
    known = held.pos if held.statistic is None else held.statistic
    if over_layer:
        known = torch.empty(rows, kv_heads, num_keys, dtype=torch.float32, device=q.device)
    weight = q_pos if observation is None else observation.weight
    retention = None if observation is None or over_layer else observation.retention
    channels = min(MOST_CHANNELS, padded(v_dim))
    parts = max(triton.cdiv(v_dim, channels), 0 if observation is None else triton.cdiv(num_keys, KEYS_PER_PART))
    sink = geometry.sink_logits
    decode.finish[(rows * kv_heads, parts)](
        scratch.logits, scratch.max, scratch.sum, scratch.part, scratch.norm_max, scratch.norm_sum,
        scratch.sum if sink is None else sink, out,
        q_pos, held.pos, known, weight, weight if retention is None else retention,
        num_keys, KEYS_PER_PART, num_keys, splits, *noise,
        q_pos.stride(0), *_heads(held.pos), *known.stride()[:2], weight.stride(0),
        0 if retention is None else retention.stride(0),
        NUM_KV_HEADS=kv_heads, G=group, D_V=v_dim, CHANNELS=channels, ROWS=tile.rows, KEYS=FINISH_TILE.columns,
        SPLITS=MAX_SPLITS, TOGETHER=JOINED_TOGETHER, HAS_SINK=sink is not None,
        HAS_RETENTION=retention is not None, STATISTIC=kind, HEADS="" if observation is None else observation.heads,
        ACCUMULATE=not over_layer,
        **FINISH_TILE.options,
    )  # fmt: skip
    if over_layer:
        assert observation is not None and held.statistic is not None
        observation.add_to(held.statistic, _over_the_layer(known))
    return out


def attend_many(
    q: Tensor,
    q_pos: Tensor,
    segments: Sequence[Segment],
    geometry: Geometry,
    capability: int,
    observation: Observation | None,
    are_last: bool = True,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Queries of a chunk over the slots and, where there is a second segment, the chunk -> out, lse, statistics.

    out [n, H_Q, T, D_V], lse [n, H_Q, T], the statistic [n, H_KV, N] of each segment. The second segment ends with the
    keys of the queries themselves, unless these are not the last: they come again, and the last segment's statistic is
    all that is given. Only the keys of slots have a bias, which lies as their positions do.
    """
    rows, num_heads, num_queries, dim = q.shape
    slots, new = segments[0], segments[-1]
    k, v, new_k, new_v = (operand(x) for x in (slots.k, slots.v, new.k, new.v))
    assert (new_k.bits, new_v.bits) == (k.bits, v.bits), "new tokens are attended as slots hold them"
    kv_heads, v_dim = slots.k.shape[1], slots.v.shape[-1]
    kind = "" if observation is None else observation.kind.value
    tile = prefill_tile(capability, dim, v_dim, kind == "gumbel", k.bits)
    noise = _noise(observation)
    q = _inner(q)
    out = torch.empty(rows, num_heads, num_queries, v_dim, dtype=_out_dtype(q, v), device=q.device)
    lse = torch.empty(rows, num_heads, num_queries, dtype=torch.float32, device=q.device)
    norm = lse if kind in ("", "mass") else torch.empty_like(lse)
    scaling, softcap = geometry.scaling, geometry.softcap or 1.0
    window = ALL if geometry.window is None else geometry.window
    prefill.attend[(triton.cdiv(num_queries, tile.rows), rows * num_heads)](
        q, q_pos, k.data, k.scale, v.data, v.scale, slots.pos, slots.bias,
        new_k.data, new_k.scale, new_v.data, new_v.scale, new.pos,
        lse if geometry.sink_logits is None else geometry.sink_logits, out, lse, norm,
        scaling, softcap, window, num_queries, slots.k.shape[2], new.k.shape[2], *noise,
        *q.stride()[:3], q_pos.stride(0), *k.strides, *v.strides, *_heads(slots.pos),
        *new_k.strides, *new_v.strides, new.pos.stride(0),
        NUM_HEADS=num_heads, G=num_heads // kv_heads, D=dim, D_V=v_dim, PAD_D=padded(dim), PAD_D_V=padded(v_dim),
        QUERIES=tile.rows, KEYS=tile.columns, BITS=k.bits, BITS_V=v.bits, GROUP=k.group, GROUP_V=v.group,
        RUN=k.run, RUN_V=v.run,
        HAS_CAP=geometry.softcap is not None, HAS_SINK=geometry.sink_logits is not None,
        HAS_NEW=len(segments) > 1, ARE_LAST=are_last, STATISTIC=kind,
        **tile.options,
    )  # fmt: skip
    if observation is None:
        return out, lse, []
    tile = column_tile(capability, dim, kind == "gumbel", k.bits)
    statistics = []
    for index, segment in enumerate(segments):
        if not are_last and segment is not new:
            continue
        k, num_keys = operand(segment.k), segment.k.shape[2]
        sums = torch.empty(rows, kv_heads, num_keys, dtype=torch.float32, device=q.device)
        prefill.column_sums[(triton.cdiv(num_keys, tile.columns), rows * kv_heads)](
            q, q_pos, norm, observation.weight, k.data, k.scale, segment.pos, segment.bias, sums,
            scaling, softcap, window, num_queries, num_keys, observation.first(num_queries), *noise,
            *q.stride()[:3], q_pos.stride(0), observation.weight.stride(0), *k.strides, *_heads(segment.pos),
            NUM_KV_HEADS=kv_heads, G=num_heads // kv_heads, D=dim, PAD_D=padded(dim),
            QUERIES=tile.rows, KEYS=tile.columns, BITS=k.bits, GROUP=k.group, RUN=k.run,
            HAS_CAP=geometry.softcap is not None, IS_NEW=are_last and index > 0, STATISTIC=kind,
            HEADS=observation.heads, **tile.options,
        )  # fmt: skip
        statistics.append(_over_the_layer(sums) if observation.heads == "layer" else sums)
    return out, lse, statistics


_NO_NOISE = Noise(0, 1.0, 1.0, 1)


def _noise(observation: Observation | None) -> tuple[int, int, int, float, float, float]:
    noise = (observation.noise if observation is not None else None) or _NO_NOISE
    return noise.seed & 0xFFFFFFFF, noise.layer, noise.first_head, noise.first, noise.last, float(noise.ramp)


def _over_the_layer(statistic: Tensor) -> Tensor:
    """The mean of all KV heads for each."""
    return statistic.mean(1, keepdim=True).expand_as(statistic)


def _out_dtype(q: Tensor, v: Operand) -> torch.dtype:
    """That of the queries; fp32 where the output is yet to be turned back."""
    return torch.float32 if v.bits else q.dtype


def _inner(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _heads(pos: Tensor) -> tuple[int, int]:
    """Strides of positions [n, H_KV or 1, N], which all heads share where there is one."""
    return pos.stride(0), 0 if pos.shape[1] == 1 else pos.stride(1)
