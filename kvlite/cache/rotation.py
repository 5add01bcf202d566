"""Rotary positions of stored keys: rotating a key on by some positions, without the model.

A rotated key is R(p) k, and R(p) is a rotation by an angle linear in p, so R(new - old) R(old) k = R(new) k. A scale
that some models put on cos and sin stays on the key.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite_kernels.lowbit import Packed, hadamard, quantise
from kvlite_kernels.reference import TILE_ELEMENTS
from kvlite_kernels.slots import Vectors


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotation of one layer's keys: `inv_freq` [R / 2] radians per position, on the R channels from `start`.

    Channel i is paired with i + R / 2, or with its neighbour where `interleaved`.
    """

    inv_freq: Tensor
    start: int
    interleaved: bool

    def rotate_(self, keys: Tensor, delta: Tensor) -> None:
        """Rotate `keys` [..., N, D] on by `delta` int [..., N or 1] positions, in place, in fp32."""
        half = self.inv_freq.shape[0]
        part = keys[..., self.start : self.start + 2 * half]
        angle = delta[..., None].float() * self.inv_freq.to(keys.device)
        cos, sin = angle.cos(), angle.sin()
        first = part[..., 0::2] if self.interleaved else part[..., :half]
        second = part[..., 1::2] if self.interleaved else part[..., half:]
        wide_first, wide_second = first.float(), second.float()
        rotated = wide_first * cos - wide_second * sin
        second.copy_(wide_second * cos + wide_first * sin)
        first.copy_(rotated)


def rotate_keys(keys: Vectors, delta: Tensor, rotation: Rotation) -> None:
    """Rotate stored `keys` [H_KV, N, D] on by `delta` int [H_KV, N] positions, in place, a tile of slots at a time.

    A coded key that moves is rounded once more; one whose delta is 0 keeps its codes.
    """
    tile = max(1, TILE_ELEMENTS // (keys.shape[0] * keys.shape[-1]))
    for start in range(0, delta.shape[1], tile):
        held, by = keys[:, start : start + tile], delta[:, start : start + tile]
        if not isinstance(held, Packed):
            rotation.rotate_(held, by)
            continue
        numbers = hadamard(held.to(torch.float32))
        rotation.rotate_(numbers, by)
        coded, moves = quantise(hadamard(numbers), held.bits, held.group), (by != 0)[..., None]
        held.codes.copy_(torch.where(moves, coded.codes, held.codes))
        held.scale.copy_(torch.where(moves, coded.scale, held.scale))
