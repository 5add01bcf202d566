"""A bias of kept keys for those that are evicted: the nearest kept key takes over what they received.

So queries give what is kept in their direction as much as before, as in attention matching
(https://arxiv.org/abs/2602.16284), whose biases are fitted; here they follow from keys alone. Letters as in
`reference`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kvlite_kernels.reference import TILE_ELEMENTS

MOST = 2.0
"""The largest bias: a key stands for at most 7 like itself."""


def handed_on(keys: Tensor, known: Tensor, bias: Tensor, gone: Tensor, takes: Tensor) -> Tensor:
    """The bias [B, H_KV, N] of keys [B, H_KV, N, D] once those numbered `gone` int64 [B, H_KV, T] are gone.

    A key stands for `known` [B, H_KV, N], what it received itself, times the exponential of its `bias`. What goes adds
    what it received itself to the one with the largest cosine of those that `takes` bool [B, H_KV, N] names; what it
    was handed is lost, or keys would end up with much that is unlike them.
    """
    unit = normalize(keys.to(torch.float32), dim=-1)
    mass = known * bias.to(torch.float32).exp()
    given = torch.zeros_like(mass)
    tile = max(1, TILE_ELEMENTS // mass.numel())
    for some in gone.split(tile, -1):
        asking = unit.gather(-2, some[..., None].expand(*some.shape, unit.shape[-1]))
        nearest = (asking @ unit.mT).masked_fill_(~takes[..., None, :], -torch.inf).argmax(-1)
        given.scatter_add_(-1, nearest, known.gather(-1, some))
    is_given = takes & (given > 0) & (mass > 0)
    return torch.where(is_given, (bias + (given / mass).log1p()).clamp(max=MOST), bias)
