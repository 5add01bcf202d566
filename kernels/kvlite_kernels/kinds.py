"""The words in which a policy says what it needs of the attention. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

Heads = Literal["mean", "max", "layer"]
"""Ways from query heads to KV heads: mean or maximum over the group that shares one, or the mean over the layer."""


class Statistic(Enum):
    """The number a key is known by. A is the probability that one query of one head gives it."""

    MASS = "mass"  # A, summed over queries
    BELOW = "below"  # queries that see t keys and give this one A < 1 / t
    GUMBEL = "gumbel"  # softmax((x + noise) / temperature) of the logits x, summed over queries


@dataclass(frozen=True, slots=True)
class Noise:
    """Gumbel noise that is a hash of (seed, layer, query head, query position, key position), and its temperature.

    The temperature goes from `first` to `last` in a straight line over the first `ramp` positions. Query heads are
    counted from `first_head` on.
    """

    seed: int
    first: float
    last: float
    ramp: int
    layer: int = 0
    first_head: int = 0
