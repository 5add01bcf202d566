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
    total, count = value * 0, (value * 0).add_(1)

    def is_near(ranks: int) -> Tensor:
        before, after = place[..., :-ranks], place[..., ranks:]
        return (before >= 0) & (after - before <= reach)

    for ranks in range(reach, 0, -1):
        near = is_near(ranks)
        total[..., ranks:] += value[..., :-ranks] * near
        count[..., ranks:] += near
        count[..., :-ranks] += near
    total += value
    for ranks in range(1, reach + 1):
        total[..., :-ranks] += value[..., ranks:] * is_near(ranks)
    mean = total / count
    return mean.scatter(-1, order, mean)
