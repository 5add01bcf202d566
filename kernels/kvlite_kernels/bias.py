"""A bias of kept keys for those that are evicted: the nearest kept key takes over what they received.

So queries give what is kept in their direction as much as before, as in attention matching
(https://arxiv.org/abs/2602.16284), whose biases are fitted; here they follow from keys alone. Letters as in
`reference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kvlite_kernels.lowbit import Packed
from kvlite_kernels.reference import TILE_ELEMENTS
from kvlite_kernels.slots import Vectors

MOST = 2.0
"""The largest bias: a key stands for at most 7 like itself."""

NEAR = 0.8
"""The least cosine of a key with the one that takes it over: further away facts told in talk are lost in it."""


def handed_on(keys: Sequence[Vectors], known: Tensor, bias: Tensor, gone: Tensor, takes: Tensor) -> Tensor:
    """The bias [B, H_KV, N] of `keys`, [B, H_KV, n, D] in parts, once those numbered `gone` int64 [B, H_KV, T] go.

    A key stands for `known` [B, H_KV, N], what it received itself, times the exponential of its `bias`. What goes adds
    what it received itself to the one with the largest cosine of those that `takes` bool [B, H_KV, N] names, if that is
    NEAR; what it was handed is lost, or keys would end up with much that is unlike them.
    """
    mass = known * bias.to(torch.float32).exp()
    number, cosine = _nearest(keys, gone, takes)
    given = torch.zeros_like(mass).scatter_add_(-1, number, known.gather(-1, gone).masked_fill(cosine < NEAR, 0.0))
    is_given = takes & (given > 0) & (mass > 0)
    return torch.where(is_given, (bias + (given / mass).log1p()).clamp(max=MOST), bias)


def _nearest(keys: Sequence[Vectors], gone: Tensor, takes: Tensor) -> tuple[Tensor, Tensor]:
    """The number of the nearest key that takes, int64 [B, H_KV, T], of each that is gone, and their cosine.

    Keys are widened a tile at a time.
    """
    asking, start = torch.zeros((), device=gone.device), 0
    for part in keys:
        is_here = (gone >= start) & (gone < start + part.shape[-2])
        found = _picked(part, (gone - start).clamp(0, part.shape[-2] - 1))
        asking = torch.where(is_here[..., None], found, asking)
        start += part.shape[-2]
    asking = normalize(asking, dim=-1)
    best = torch.full(gone.shape, -torch.inf, device=gone.device)
    number, first = torch.zeros_like(gone), 0
    tile = max(1, TILE_ELEMENTS // (asking.shape[:-2].numel() * max(asking.shape[-2:])))
    for part in keys:
        for start in range(0, part.shape[-2], tile):
            some = part[..., start : start + tile, :].to(torch.float32)
            here = slice(first + start, first + start + some.shape[-2])
            per_length = some.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny).reciprocal()  # of the cosine
            cosine = (asking @ some.mT).mul_(per_length[..., None, :])
            value, place = cosine.masked_fill_(~takes[..., None, here], -torch.inf).max(-1)
            number = torch.where(value > best, place + here.start, number)
            best = torch.maximum(best, value)
        first += part.shape[-2]
    return number, best


def _picked(vectors: Vectors, index: Tensor) -> Tensor:
    """Those numbered `index` int64 [B, H_KV, T], in fp32."""

    def picked(x: Tensor) -> Tensor:
        return x.gather(-2, index[..., None].expand(*index.shape, x.shape[-1]))

    if isinstance(vectors, Packed):
        return Packed(picked(vectors.codes), picked(vectors.scale), vectors.dim).to(torch.float32)
    return picked(vectors).to(torch.float32)
