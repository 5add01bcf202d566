"""The torch twin of ranking: what a `Rank` says of tokens, who is protected, and the waiting token in its slot.

Letters: n rows, H_KV KV heads, N tokens in no order, of which the last may wait in the discard slot S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvlite_kernels import reference
from kvlite_kernels.kinds import Rank
from kvlite_kernels.lowbit import Packed
from kvlite_kernels.neighbours import mean_of_neighbours
from kvlite_kernels.slots import Held, Ranking


def score(rank: Rank, statistic: Tensor | None, pos: Tensor, next_pos: Tensor) -> Tensor:
    """What each token is worth, fp32 [n, H_KV, N], of its statistic, its position and the one that comes next."""
    if rank.by == "position":
        return pos.float()
    assert statistic is not None
    known = statistic / (next_pos - pos).clamp(1, rank.horizon) if rank.by == "age" else statistic
    return known if rank.pooled == 1 else mean_of_neighbours(known, pos, rank.reach)


def priority(score: Tensor, pos: Tensor, next_pos: Tensor, ranking: Ranking, window: int | None) -> Tensor:
    """The score under the protections: +inf is kept, -inf is free or padding, and what no query sees goes first."""
    protected = pos >= next_pos - ranking.recent
    if window is not None:
        score = score.masked_fill(pos <= next_pos - window, torch.finfo(score.dtype).min)
    else:
        protected = protected | (pos < ranking.sinks)
        if ranking.pins is not None:
            start, end = ranking.pins[:, None, None].unbind(-1)  # [n, 1, 1, P]
            protected = protected | ((pos[..., None] >= start) & (pos[..., None] < end)).any(-1)
    return score.masked_fill(protected, torch.inf).masked_fill(pos < 0, -torch.inf)


def evict(held: Held, q_pos: Tensor, ranking: Ranking, window: int | None) -> None:
    """Put the token that waits in slot S over the slot that goes first, free ones in order; padding is dropped.

    `q_pos` int [n, 1] is where its query was.
    """
    next_pos = q_pos[:, :, None] + 1
    worth = priority(score(ranking.rank, held.statistic, held.pos, next_pos), held.pos, next_pos, ranking, window)
    slots, waiting = slice(ranking.slots), slice(ranking.slots, None)
    index = reference.evict(worth[..., slots], held.pos[..., slots], worth[..., waiting], held.pos[..., waiting])
    for tensor in (*_parts(held.k), *_parts(held.v), held.pos, held.rot, held.statistic):
        if tensor is not None:
            new = tensor[:, :, waiting].clone()
            tensor.scatter_(2, index.view(*index.shape, *[1] * (tensor.dim() - 3)).expand_as(new), new)


def _parts(vectors: reference.Vectors) -> tuple[Tensor, ...]:
    return (vectors.codes, vectors.scale) if isinstance(vectors, Packed) else (vectors,)
