"""The words in which a policy says what it needs of the attention. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

Heads = Literal["mean", "max", "layer"]
"""How query heads become KV heads: mean or maximum over the group that shares one, or the mean over the whole layer."""


class Statistic(Enum):
    """What a key is known by. A is the probability that one query of one head gives it."""

    NONE = "none"  # nothing
    MASS = "mass"  # A, summed over queries
    BELOW = "below"  # queries that see t keys and give this one A < 1 / t
    GUMBEL = "gumbel"  # softmax((x + noise) / temperature) of the logits x, summed over queries
    SIMILARITY = "similarity"  # cosine of the key with the mean of all unit keys: no attention, nothing kept

    @property
    def accumulates(self) -> bool:
        """Whether it is summed over queries, and so kept per slot."""
        return self not in (Statistic.NONE, Statistic.SIMILARITY)


@dataclass(frozen=True, slots=True)
class Noise:
    """Gumbel noise that is a hash of (seed, layer, query head, query position, key position), and its temperature.

    The temperature goes from `first` to `last` in a straight line over the first `ramp` positions.
    """

    seed: int
    first: float
    last: float
    ramp: int
    layer: int = 0


@dataclass(frozen=True, slots=True)
class Rank:
    """A score that a kernel computes: the statistic, the same per token of age (at most `horizon`), or the position.

    Its mean over the tokens held at the `pooled` positions around a token, an odd number, is what counts.
    """

    by: Literal["statistic", "age", "position"]
    horizon: int = 1
    pooled: int = 1

    @property
    def reach(self) -> int:
        """How many positions away a token still shares."""
        return self.pooled // 2
