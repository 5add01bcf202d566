"""Launching the kernels that write slots in place."""

from __future__ import annotations

import triton
from torch import Tensor

from kvlite_kernels.slots import Arriving, Held
from kvlite_kernels.triton_set import commit
from kvlite_kernels.triton_set.scratch import MAX_PARTS, Scratch
from kvlite_kernels.triton_set.tiles import MOVE_TILE, insert_tile, padded


def insert(held: Held, new: Arriving, index: Tensor | slice) -> None:
    """Put new tokens into the slots `index`: a slice, or int64 [n, H_KV or 1, T] with S for what is not kept."""
    rows, kv_heads, num_tokens, dim = new.k.shape
    v_dim = new.v.shape[-1]
    slots = held.pos.shape[-1] - 1
    tile = insert_tile(num_tokens)
    by_index = isinstance(index, Tensor)
    at = index if isinstance(index, Tensor) else new.pos[:, None]
    assert isinstance(index, Tensor) or index.stop - index.start == num_tokens
    statistic = held.pos if held.statistic is None else held.statistic
    known = new.pos[:, None] if new.statistic is None else new.statistic
    commit.insert[(rows * kv_heads, triton.cdiv(num_tokens, tile.queries))](
        held.k, held.v, held.pos, held.rot, statistic, new.k, new.v, new.pos, new.rot, known, at,
        0 if isinstance(index, Tensor) else index.start, slots, num_tokens,
        *held.k.stride()[:3], *held.v.stride()[:3], *held.pos.stride()[:2],
        *new.k.stride()[:3], *new.v.stride()[:3], new.pos.stride(0), new.rot.stride(0), *_heads(known), *_heads(at),
        at.stride(2),
        NUM_KV_HEADS=kv_heads, D=dim, D_V=v_dim, PAD_D=padded(dim), PAD_D_V=padded(v_dim),
        TOKENS=tile.queries, HAS_INDEX=by_index, HAS_STATISTIC=held.statistic is not None,
        STARTS_AT_ZERO=new.statistic is None,
        **tile.options,
    )  # fmt: skip


def move(held: Held, scratch: Scratch, parts: int) -> None:
    """Put the token that waits in slot S over the slot that `attention.attend_one` ranked lowest in `parts` parts."""
    rows, kv_heads, waiting, dim = held.k.shape[0], held.k.shape[1], held.k.shape[2] - 1, held.k.shape[3]
    v_dim = held.v.shape[-1]
    statistic = held.pos if held.statistic is None else held.statistic
    commit.move[(rows * kv_heads,)](
        held.k, held.v, held.pos, held.rot, statistic, scratch.rank, scratch.rank_pos, scratch.rank_slot,
        waiting, parts, *held.k.stride()[:3], *held.v.stride()[:3], *held.pos.stride()[:2],
        NUM_KV_HEADS=kv_heads, D=dim, D_V=v_dim, PAD_D=padded(dim), PAD_D_V=padded(v_dim), PARTS=MAX_PARTS,
        HAS_STATISTIC=held.statistic is not None, **MOVE_TILE.options,
    )  # fmt: skip


def _heads(x: Tensor) -> tuple[int, int]:
    """Strides of rows and KV heads of [n, H_KV or 1, ...], which all heads share where there is one."""
    return x.stride(0), 0 if x.shape[1] == 1 else x.stride(1)
