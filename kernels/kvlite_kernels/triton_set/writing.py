"""Launching the kernels that write slots in place; where these are coded, what they write is coded by them."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kvlite_kernels.lowbit import Packed
from kvlite_kernels.slots import Arriving, Held, Ranking
from kvlite_kernels.triton_set import coding, commit, eviction
from kvlite_kernels.triton_set.operand import operand
from kvlite_kernels.triton_set.scratch import MAX_PARTS, Scratch
from kvlite_kernels.triton_set.tiles import EVICT_TILE, MOVE_TILE, insert_tile, padded


def insert(held: Held, new: Arriving, index: Tensor | slice) -> None:
    """Put new tokens into the slots `index`: a slice, or int64 [n, H_KV or 1, T] with S for what is not kept.

    Tokens are numbers; into coded slots they come rotated.
    """
    rows, kv_heads, num_tokens, dim = new.k.shape
    v_dim = new.v.shape[-1]
    slots = held.pos.shape[-1] - 1
    by_index = isinstance(index, Tensor)
    at = index if isinstance(index, Tensor) else new.pos[:, None]
    assert isinstance(index, Tensor) or index.stop - index.start == num_tokens
    statistic = held.pos if held.statistic is None else held.statistic
    known = new.pos[:, None] if new.statistic is None else new.statistic
    k, v = operand(held.k), operand(held.v)
    tile = insert_tile(num_tokens, k.bits)
    commit.insert[(rows * kv_heads, triton.cdiv(num_tokens, tile.queries))](
        k.data, k.scale, v.data, v.scale, held.pos, held.rot, statistic, new.k, new.v, new.pos, new.rot, known, at,
        0 if isinstance(index, Tensor) else index.start, slots, num_tokens,
        *k.strides, *v.strides, *held.pos.stride()[:2],
        *new.k.stride()[:3], *new.v.stride()[:3], new.pos.stride(0), new.rot.stride(0), *_heads(known), *_heads(at),
        at.stride(2),
        NUM_KV_HEADS=kv_heads, D=dim, D_V=v_dim, PAD_D=padded(dim), PAD_D_V=padded(v_dim),
        BITS=k.bits, GROUP=k.group, GROUP_V=v.group, RUN=k.run, RUN_V=v.run,
        TOKENS=tile.queries, HAS_INDEX=by_index, HAS_STATISTIC=held.statistic is not None,
        STARTS_AT_ZERO=new.statistic is None,
        **tile.options,
    )  # fmt: skip


def move(held: Held, scratch: Scratch, parts: int) -> None:
    """Put the token that waits in slot S over the slot that `attention.attend_one` ranked lowest in `parts` parts."""
    rows, kv_heads, waiting, dim = held.k.shape[0], held.k.shape[1], held.k.shape[2] - 1, held.k.shape[3]
    v_dim = held.v.shape[-1]
    statistic = held.pos if held.statistic is None else held.statistic
    k, v = operand(held.k), operand(held.v)
    commit.move[(rows * kv_heads,)](
        k.data, k.scale, v.data, v.scale, held.pos, held.rot, statistic,
        scratch.rank, scratch.rank_pos, scratch.rank_slot, waiting, parts,
        *k.strides, *v.strides, *held.pos.stride()[:2],
        NUM_KV_HEADS=kv_heads, D=dim, D_V=v_dim, PAD_D=padded(dim), PAD_D_V=padded(v_dim),
        BITS=k.bits, GROUP=k.group, GROUP_V=v.group, PARTS=MAX_PARTS,
        HAS_STATISTIC=held.statistic is not None, **MOVE_TILE.options,
    )  # fmt: skip


def evict(held: Held, rows: slice, layers: int, q_pos: Tensor, ranking: Ranking, window: int | None) -> None:
    """As `kvlite_kernels.slots.SlotKernels` says."""
    assert held.order is not None and held.pos.stride() == held.rot.stride()
    all_rows, kv_heads, dim, v_dim = held.k.shape[0] // layers, held.k.shape[1], held.k.shape[3], held.v.shape[3]
    num_rows, rank = rows.stop - rows.start, ranking.rank
    statistic = held.pos if held.statistic is None else held.statistic
    pins = q_pos if ranking.pins is None else ranking.pins
    k, v = operand(held.k), operand(held.v)
    tile = EVICT_TILE
    eviction.evict[(layers * num_rows * kv_heads,)](
        k.data, k.scale, v.data, v.scale, held.pos, held.rot, statistic, held.order, q_pos, pins,
        ranking.slots, num_rows, all_rows, rows.start, rank.horizon, ranking.recent, ranking.sinks,
        0 if window is None else window, 0 if ranking.pins is None else pins.shape[1],
        *k.strides, *v.strides, *held.pos.stride()[:2], *held.order.stride()[:2], q_pos.stride(0),
        NUM_KV_HEADS=kv_heads, D=dim, D_V=v_dim, PAD_D=padded(dim), PAD_D_V=padded(v_dim),
        BITS=k.bits, GROUP=k.group, GROUP_V=v.group, HAS_STATISTIC=held.statistic is not None,
        HAS_WINDOW=window is not None, RANK=rank.by, REACH=rank.reach, RANKS=tile.keys, OTHERS=tile.queries,
        **tile.options,
    )  # fmt: skip


def quantise(x: Tensor, bits: int, group: int) -> Packed:
    """As `lowbit.quantise`: x [..., D] in 8 or 4 `bits`, with one scale per `group` channels, which divides D."""
    *shape, dim = x.shape
    width, dtype = (dim, torch.int8) if bits == 8 else ((dim + 1) // 2, torch.uint8)
    codes = torch.empty(*shape, width, dtype=dtype, device=x.device)
    scale = torch.empty(*shape, dim // group, dtype=torch.float16, device=x.device)
    packed, num_vectors = Packed(codes, scale, dim), scale.numel() * group // dim
    tile = insert_tile(num_vectors, bits)
    coding.code[(triton.cdiv(num_vectors, tile.queries),)](
        x.contiguous(), codes, scale, num_vectors, D=dim, PAD_D=padded(dim), BITS=bits, GROUP=group,
        RUN=packed.run, TOKENS=tile.queries, **tile.options,
    )  # fmt: skip
    return packed


def _heads(x: Tensor) -> tuple[int, int]:
    """Strides of rows and KV heads of [n, H_KV or 1, ...], which all heads share where there is one."""
    return x.stride(0), 0 if x.shape[1] == 1 else x.stride(1)
