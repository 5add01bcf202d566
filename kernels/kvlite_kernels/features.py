"""What a policy may know of keys and values without attention: torch twins that widen a tile of slots at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvlite_kernels import reference
from kvlite_kernels.reference import Vectors

_TINY = 1e-12


def similarity(keys: Sequence[Vectors], k_pos: Sequence[Tensor]) -> list[Tensor]:
    """Cosine of each key with the mean of the unit keys of its head over all segments: fp32 [B, H_KV, N] of each.

    `keys` [B, H_KV, N, D] and `k_pos` int [B, H_KV or 1, N] are of each segment; 0 where the position is -1.
    """
    sums = [
        _unit(part[:, :, here], pos[:, :, here]).sum(2)
        for part, pos in zip(keys, k_pos, strict=True)
        for here in _tiles(part)
    ]
    total = torch.stack(sums).sum(0)
    direction = total / total.norm(dim=-1, keepdim=True).clamp(min=_TINY)
    return [
        torch.cat(
            [(_unit(part[:, :, here], pos[:, :, here]) @ direction[..., None])[..., 0] for here in _tiles(part)], -1
        )
        for part, pos in zip(keys, k_pos, strict=True)
    ]


def norms(values: Vectors) -> Tensor:
    """The Euclidean norm of each value: [B, H_KV, N, D_V] -> fp32 [B, H_KV, N]."""
    wide = _wide(values)
    return torch.cat([values[:, :, here].to(wide).norm(dim=-1) for here in _tiles(values)], -1)


def _unit(keys: Vectors, pos: Tensor) -> Tensor:
    """Keys of length one, zero where there is none."""
    wide = keys.to(_wide(keys))
    unit: Tensor = wide / wide.norm(dim=-1, keepdim=True).clamp(min=_TINY)
    return unit.masked_fill((pos < 0)[..., None], 0.0)


def _tiles(held: Vectors) -> Iterator[slice]:
    size = max(1, reference.TILE_ELEMENTS // (held.shape[0] * held.shape[1] * held.shape[3]))
    return (slice(start, start + size) for start in range(0, held.shape[2], size))


def _wide(held: Vectors) -> torch.dtype:
    return torch.promote_types(held.dtype, torch.float32)
