"""Scores that a token shares with its neighbours, so that what was said stays as spans and not as single tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mean_of_neighbours(statistic: Tensor, pos: Tensor, reach: int) -> Tensor:
    """The mean of `statistic` over the held positions up to `reach` away, in the order given: fp32 [B, H_KV, N].

    Positions are distinct, so those within `reach` are at most that many ranks apart. Neighbours are added up from the
    first to the last, so that tokens with the same neighbours have the same mean to the bit.
    """
    order = pos.argsort(-1)
    place, value = pos.gather(-1, order), statistic.gather(-1, order)
    nowhere = -1 - reach  # as far from every position as it takes
    place = place.masked_fill_(place < 0, nowhere)
    distance = _around(place, reach, nowhere).sub_(place).abs_()
    near = distance.sub_(reach + 1).clamp_(-1, 0).to(value.dtype)  # -1 up to `reach` away, else 0
    count = near.sum(0)
    total, *others = near.mul_(_around(value, reach, 0.0)).unbind()
    for other in others:
        total += other
    mean = total / count
    return mean.scatter(-1, order, mean)


def _around(values: Tensor, reach: int, beyond: float) -> Tensor:
    """For each offset from -reach to reach a copy of `values` [..., N] as far on in the last dimension.

    What lies past its ends is `beyond`.
    """
    *rows, num_values = values.shape
    padded = values.new_full((*rows, num_values + 2 * reach), beyond)
    padded.narrow(-1, reach, num_values).copy_(values)
    windows = padded.unfold(-1, 2 * reach + 1, 1).movedim(-1, 0)
    return values.new_empty(windows.shape).copy_(windows)  # in this order of dimensions
