"""The policies as lists of tokens in float64: no tensors, no slots, one head and one token at a time.

Written from the description of each method, not from the cache, which must agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.cache.driving import Span, Stream

Vector = list[float]


@dataclass(frozen=True)
class Rule:
    """A policy: who is safe, and by what the others are ranked."""

    rank: Callable[[float, int, int], float]  # of (mass, position, next position), higher stays
    recent: Callable[[int], int]  # of the slots
    sinks: int = 0
    decay: float = 1.0


def heavy_hitter(horizon: int = 1024, decay: float = 1.0) -> Rule:
    """Mass per token of age, four sinks, a quarter of the slots recent but at least four."""
    return Rule(lambda mass, position, now: mass / min(now - position, horizon), lambda s: max(4, s // 4), 4, decay)


H2O = Rule(lambda mass, position, now: mass, lambda slots: slots // 2)
WINDOW = Rule(lambda mass, position, now: position, lambda slots: 1, sinks=4)
FULL = Rule(lambda mass, position, now: position, lambda slots: 1)


@dataclass
class Token:
    position: int
    key: Vector
    value: Vector
    mass: float = 0.0


@dataclass
class Head:
    """One KV head of one layer, and the group of query heads that share it."""

    rule: Rule
    slots: int
    window: int | None
    pins: Sequence[Span]
    scaling: float
    held: list[Token] = field(default_factory=list)

    def feed(self, queries: Sequence[Sequence[Vector]], new: Sequence[Token]) -> list[list[Vector]]:
        """Attend with `queries` [G][T] over what is held and the new tokens, then keep the best: outputs [G][T]."""
        everyone = [*self.held, *new]
        received = {token.position: 0.0 for token in everyone}
        last = new[-1].position
        outs: list[list[Vector]] = []
        for group in queries:
            outs.append([])
            for query, asking in zip(group, new, strict=True):
                seen = [token for token in everyone if self._sees(asking.position, token.position)]
                shares = _softmax([self.scaling * _dot(query, token.key) for token in seen])
                outs[-1].append([_dot(shares, column) for column in zip(*(token.value for token in seen), strict=True)])
                weight = self.rule.decay ** (last - asking.position) / len(queries)
                for token, share in zip(seen, shares, strict=True):
                    received[token.position] += weight * share
        for token in everyone:
            token.mass = token.mass * self.rule.decay ** len(new) + received[token.position]
        while len(everyone) > self.slots:
            everyone.remove(min(everyone, key=lambda token: self._worth(token, last + 1)))
        self.held = everyone
        return outs

    def _sees(self, query: int, key: int) -> bool:
        return key <= query and (self.window is None or key > query - self.window)

    def _worth(self, token: Token, now: int) -> tuple[int, float, int]:
        """What goes first: nobody will see it again, then by rank, then the protected; of equals the oldest."""
        if not self._sees(now, token.position):
            return 0, 0.0, token.position
        recent = max(1, min(self.rule.recent(self.slots), self.slots - 1))
        safe = token.position >= now - recent
        if self.window is None:
            safe |= token.position < self.rule.sinks
            safe |= any(start <= token.position < end for start, end in self.pins)
        return (2 if safe else 1), self.rule.rank(token.mass, token.position, now), token.position


class Layer:
    """The heads of one layer of one conversation."""

    def __init__(self, rule: Rule, slots: int, window: int | None, pins: Sequence[Span], stream: Stream) -> None:
        self.q, self.k, self.v = (tensor.tolist() for tensor in (stream.q, stream.k, stream.v))
        self.seen = 0
        dim = stream.k.shape[-1]
        self.heads = [Head(rule, slots, window, pins, dim**-0.5) for _ in self.k]

    def feed(self, count: int) -> list[list[Vector]]:
        """Feed the next `count` tokens: outputs [H_Q][T]."""
        here = range(self.seen, self.seen + count)
        self.seen += count
        group = len(self.q) // len(self.heads)
        outs = []
        for index, head in enumerate(self.heads):
            queries = [[self.q[index * group + g][t] for t in here] for g in range(group)]
            outs += head.feed(queries, [Token(t, self.k[index][t], self.v[index][t]) for t in here])
        return outs


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
