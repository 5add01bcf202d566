"""The problem of a trial: queries of a chunk over slots of which some are free, and the chunk's own keys.

Memory behind the slots is NaN; free slots hold large numbers, since 0 times NaN is no 0 in torch either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvlite_kernels import lowbit
from kvlite_kernels.backend import LayerSizes
from kvlite_kernels.kinds import Noise, Statistic
from kvlite_kernels.lowbit import Packed, hadamard
from kvlite_kernels.reference import Segment
from kvlite_kernels.slots import Vectors
from kvlite_kernels.statistic import Observation
from kvlite_kernels.trial.task import SlotsPart, Task

ROWS, CHUNK = 2, 40
MOST_GROUP = 32
LARGE = 64.0
BEHIND = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """Queries of a chunk over slots, some of them free, and the chunk's own keys; what is `known` of the slots.

    `poisoned` are the same slots, row by row and, as those of heads with slots of their own, head by head.
    """

    task: Task
    part: SlotsPart
    q: Tensor
    q_pos: Tensor
    held: Segment
    poisoned: tuple[Segment, Segment]
    new: Segment
    known: Tensor

    @classmethod
    def made(cls, task: Task, part: SlotsPart, layer: LayerSizes) -> Problem:
        """A problem of these sizes, the same each time."""
        generator, keys = torch.Generator().manual_seed(layer.k_dim), layer.keys

        def normal(heads: int, count: int, dim: int) -> Tensor:
            return torch.randn(ROWS, heads, count, dim, generator=generator).to(task.place, task.number)

        places = torch.rand(ROWS, layer.kv_heads, keys, generator=generator).argsort(-1).int()
        for row in range(ROWS):
            places[row, :, keys - (1 + row) * keys // 8 :] = -1
        pos = places.to(task.place)
        k, v = stored(part, normal(layer.kv_heads, keys, layer.k_dim), normal(layer.kv_heads, keys, layer.v_dim))
        free, bias = pos < 0, None
        if part.has_bias:
            bias = torch.rand(pos.shape, generator=generator).to(task.place, torch.float16)
        q_pos = torch.arange(keys, keys + CHUNK, dtype=torch.int32, device=task.place).expand(ROWS, -1).contiguous()
        filled: list[Any] = [_filled(k, free, LARGE), _filled(v, free, LARGE), pos]
        filled.append(None if bias is None else bias.masked_fill(free, LARGE))

        def poisoned(by_heads: bool) -> Segment:
            keys, values, places, biases = (before_nan(x, by_heads) for x in filled)
            return Segment(keys, values, places, bias=biases)

        chunk = (normal(layer.kv_heads, CHUNK, layer.k_dim), normal(layer.kv_heads, CHUNK, layer.v_dim))
        return cls(
            task,
            part,
            2 * normal(layer.query_heads, CHUNK, layer.k_dim),
            q_pos,
            Segment(_filled(k, free, 0.0), _filled(v, free, 0.0), pos, bias=bias),
            (poisoned(by_heads=False), poisoned(by_heads=True)),
            Segment(*stored(part, *chunk), pos=q_pos[:, None]),
            torch.rand(ROWS, layer.kv_heads, keys, generator=generator).to(task.place) / keys,
        )

    def observation(self, queries: int, forgets: bool = False) -> Observation | None:
        """The statistic of that many queries, which weigh differently; None where it is no matter of attention.

        One that `forgets` keeps a share of what is known, and counts the later half of the queries alone.
        """
        return None if self.part.is_heard else self._observed(queries, forgets)

    def heard(self) -> Observation | None:
        """The statistic of queries that come once more; None where none do."""
        return self._observed(CHUNK, False) if self.part.is_heard else None

    def _observed(self, queries: int, forgets: bool) -> Observation | None:
        if self.part.statistic is None:
            return None
        weight = torch.linspace(0.5, 1.0, queries, device=self.q.device).expand(ROWS, -1).contiguous()
        noise = Noise(7, 1.0, 2.0, 50, layer=3) if self.part.statistic is Statistic.GUMBEL else None
        if not forgets:
            return Observation(self.part.statistic, weight, None, self.part.heads, noise)
        weight[:, : queries // 2] = 0.0
        retention = torch.linspace(0.4, 0.9, ROWS, device=self.q.device)[:, None, None]
        return Observation(self.part.statistic, weight, retention, self.part.heads, noise, queries - queries // 2)


def stored(part: SlotsPart, k: Tensor, v: Tensor) -> tuple[Vectors, Vectors]:
    """Keys and values as slots hold them."""
    if not part.k_bits:
        return k, v
    both = ((k, part.k_bits), (v, part.v_bits))
    keys, values = (lowbit.quantise(hadamard(x), bits, group_of(x.shape[-1])) for x, bits in both)
    return keys, values


def group_of(dim: int) -> int:
    """The channels that share a scale: the largest power of two that divides all, up to MOST_GROUP."""
    return min(MOST_GROUP, dim & -dim)


def _filled(vectors: Vectors, where: Tensor, value: float) -> Vectors:
    """A copy with `value`, of codes in their scales, wherever nothing is held."""
    if isinstance(vectors, Packed):
        return Packed(vectors.codes, vectors.scale.masked_fill(where[..., None], value), vectors.dim)
    return vectors.masked_fill(where[..., None], value)


def before_nan(vectors: Any, by_heads: bool = False) -> Any:
    """A copy [B, H, N, ...] as a view of memory that goes on behind N with what nobody may read; None of nothing.

    Its rows lie one after another, or those of each head do.
    """
    if vectors is None:
        return None
    if isinstance(vectors, Packed):
        return Packed(before_nan(vectors.codes, by_heads), before_nan(vectors.scale, by_heads), vectors.dim)
    rows, heads, count, *tail = vectors.shape
    first = (heads, rows) if by_heads else (rows, heads)
    whole = torch.empty(*first, count + BEHIND, *tail, dtype=vectors.dtype, device=vectors.device)
    view = (whole.transpose(0, 1) if by_heads else whole)[:, :, :count]
    view.copy_(vectors)
    return view
