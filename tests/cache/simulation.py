"""The policies as lists of tokens in float64: no tensors, no slots, one head and one token at a time.

Written from the description of each method, not from the cache, which must agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.cache.driving import Span, Stream

Vector = list[float]


@dataclass
class Token:
    position: int
    key: Vector
    value: Vector
    known: float = 0.0


@dataclass(frozen=True)
class Asked:
    """One query of one head, and the logits of the keys at `positions` that it sees."""

    layer: int
    head: int
    position: int
    logits: Sequence[float]
    positions: Sequence[int]


def mass(asked: Asked) -> list[float]:
    """The probability of each key."""
    return _softmax(asked.logits)


def below(asked: Asked) -> list[float]:
    """Which keys get less than an equal share."""
    shares = _softmax(asked.logits)
    return [1.0 if share < 1 / len(shares) else 0.0 for share in shares]


def gumbel(seed: int, ramp: int) -> Callable[[Asked], list[float]]:
    """A softmax of noisy logits, at a temperature that rises from 1 to 2 over `ramp` positions."""

    def shares(asked: Asked) -> list[float]:
        temperature = 1 + min(1.0, asked.position / ramp)
        noise = [_noise(seed, asked.layer, asked.head, asked.position, position) for position in asked.positions]
        return _softmax([(x + g) / temperature for x, g in zip(asked.logits, noise, strict=True)])

    return shares


@dataclass(frozen=True)
class Rule:
    """A policy: who is safe, what is known of a token, and how the others are ranked by it.

    `gives` is what one query of one head says of every key it sees, and `heads` how a group of them is summed up: by
    the mean, the most of them, or the mean of all heads of the layer. The last `observed` queries count. At first a
    token is known as `unheard`.
    """

    rank: Callable[[Sequence[Token], int], Sequence[float]]  # of all tokens and the next position, higher stays
    recent: Callable[[int], int]  # of the slots
    sinks: int = 0
    gives: Callable[[Asked], list[float]] = mass
    decay: float = 1.0
    observed: int | None = None
    heads: str = "mean"
    unheard: float = 0.0

    def weight(self, age: int) -> float:
        """How much a query counts that `age` others have followed."""
        return 0.0 if self.observed is not None and age >= self.observed else self.decay**age

    def keeps(self, count: int) -> float:
        """What is left of earlier queries after `count` more."""
        faded = 1.0 if self.observed is None else max(0.0, 1 - count / self.observed)
        return self.decay**count * faded


def by_sum(tokens: Sequence[Token], now: int) -> list[float]:
    return [token.known for token in tokens]


def by_position(tokens: Sequence[Token], now: int) -> list[float]:
    return [token.position for token in tokens]


def shared(tokens: Sequence[Token], values: Sequence[float], pooled: int) -> list[float]:
    """The mean of the values of the tokens at most half of `pooled` positions away."""
    near = [
        [v for t, v in zip(tokens, values, strict=True) if abs(t.position - token.position) <= pooled // 2]
        for token in tokens
    ]
    return [math.fsum(values) / len(values) for values in near]


def heavy_hitter(decay: float = 0.95, heads: str = "mean", pooled: int = 9) -> Rule:
    """Fading mass shared with neighbours, four sinks, a quarter of the slots recent but at least four."""

    def rank(tokens: Sequence[Token], now: int) -> list[float]:
        return shared(tokens, [token.known for token in tokens], pooled)

    return Rule(rank, lambda slots: max(4, slots // 4), 4, decay=decay, heads=heads)


def scissorhands(history: int = 400) -> Rule:
    """Those least often below average lately, and the ten newest."""
    return Rule(lambda tokens, now: [-t.known for t in tokens], lambda slots: 10, gives=below, observed=history)


def keyformer(seed: int = 0, ramp: int = 1024) -> Rule:
    """The largest sums of the noisy softmax, and the newest three tenths."""
    return Rule(by_sum, lambda slots: slots * 3 // 10, gives=gumbel(seed, ramp))


def snapkv(window: int = 32, pooled: int = 5) -> Rule:
    """What the last `window` queries look at, averaged over neighbours, and those queries' own tokens."""

    def rank(tokens: Sequence[Token], now: int) -> list[float]:
        return shared(tokens, by_sum(tokens, now), pooled)

    return Rule(rank, lambda slots: min(window, slots // 2), observed=window)


def _unlike_the_others(tokens: Sequence[Token], now: int) -> list[float]:
    units = [[x / math.hypot(*token.key) for x in token.key] for token in tokens]
    anchor = [math.fsum(column) / len(units) for column in zip(*units, strict=True)]
    return [-_dot(unit, anchor) / math.hypot(*anchor) for unit in units]


def _nothing(asked: Asked) -> list[float]:
    return [0.0] * len(asked.logits)


REPLAY = Rule(by_sum, lambda slots: max(4, slots // 4), 4, gives=_nothing, unheard=1e30)
"""Of tokens whose queries do not ask again."""
H2O = Rule(by_sum, lambda slots: slots // 2)
TOVA = Rule(by_sum, lambda slots: 1, observed=1, heads="layer")
KEYDIFF = Rule(_unlike_the_others, lambda slots: 1)
WINDOW = Rule(by_position, lambda slots: 1, sinks=4)
FULL = Rule(by_position, lambda slots: 1)


@dataclass
class Head:
    """One KV head of one layer, and the group of query heads that share it."""

    rule: Rule
    slots: int
    window: int | None
    pins: Sequence[Span]
    held: list[Token] = field(default_factory=list)

    def sees(self, query: int, key: int) -> bool:
        return key <= query and (self.window is None or key > query - self.window)

    def evict(self, everyone: list[Token], received: dict[int, float], count: int) -> None:
        """Keep the best of what was held and the last `count` tokens, given what each position received.

        Of pinned tokens no more stay than leave room for one that is not; of equals at that limit none.
        """
        now = everyone[-1].position + 1
        for token in everyone:
            token.known = token.known * self.rule.keeps(count) + received[token.position]
        ranks = self.rule.rank(everyone, now)
        worth = {t.position: self._worth(t.position, rank, now) for t, rank in zip(everyone, ranks, strict=True)}
        pinned = [position for position in worth if self._is_pinned(position) and worth[position][0] == 1]
        room = max(0, self.slots - 1 - self.rule.sinks - self._recent)
        best = sorted((worth[position][1] for position in pinned), reverse=True)
        for position in pinned:
            if len(pinned) <= room or worth[position][1] > best[room]:
                worth[position] = 2, 0.0, position
        staying = sorted(worth, key=lambda position: worth[position])[max(0, len(everyone) - self.slots) :]
        self.held = [token for token in everyone if token.position in staying]

    def _worth(self, position: int, rank: float, now: int) -> tuple[int, float, int]:
        """What goes first: nobody will see it again, then by rank, then the protected; of equals the oldest."""
        if not self.sees(now, position):
            return 0, 0.0, position
        safe = position >= now - self._recent
        if self.window is None:
            safe |= position < self.rule.sinks
        return (2, 0.0, position) if safe else (1, rank, position)

    def _is_pinned(self, position: int) -> bool:
        return self.window is None and any(start <= position < end for start, end in self.pins)

    @property
    def _recent(self) -> int:
        return max(1, min(self.rule.recent(self.slots), self.slots - 1))


class Layer:
    """The heads of layer `index` of one conversation, each with its own number of slots."""

    def __init__(
        self,
        index: int,
        rule: Rule,
        slots: Sequence[int],
        window: int | None,
        pins: Sequence[Span],
        stream: Stream,
    ) -> None:
        self.index = index
        self.rule = rule
        self.q, self.k, self.v = (tensor.tolist() for tensor in (stream.q, stream.k, stream.v))
        self.seen = 0
        self.scaling = stream.k.shape[-1] ** -0.5
        self.heads = [Head(rule, held, window, pins) for held in slots]

    def feed(self, count: int) -> list[list[Vector]]:
        """Attend over what is held and the next `count` tokens, then keep the best: outputs [H_Q][T]."""
        new = range(self.seen, self.seen + count)
        self.seen += count
        group = len(self.q) // len(self.heads)
        outs: list[list[Vector]] = []
        everyone, said = [], []
        for index, head in enumerate(self.heads):
            everyone.append(
                [*head.held, *(Token(t, self.k[index][t], self.v[index][t], self.rule.unheard) for t in new)]
            )
            answers = [self._attend(index * group + g, head, everyone[-1], new) for g in range(group)]
            outs += [out for out, _ in answers]
            said.append([given for _, given in answers])
        if self.rule.heads == "layer":
            said = [[given for answers in said for given in answers]] * len(self.heads)
        for head, tokens, given in zip(self.heads, everyone, said, strict=True):
            head.evict(tokens, {t.position: self._summed(given, t.position, new) for t in tokens}, count)
        return outs

    def _attend(
        self, q_head: int, head: Head, everyone: Sequence[Token], new: range
    ) -> tuple[list[Vector], list[dict[int, float]]]:
        """What one query head sees, and what it says of each position, query by query."""
        outs, given = [], []
        for position in new:
            seen = [token for token in everyone if head.sees(position, token.position)]
            logits = [self.scaling * _dot(self.q[q_head][position], token.key) for token in seen]
            shares = _softmax(logits)
            outs.append([_dot(shares, column) for column in zip(*(token.value for token in seen), strict=True)])
            positions = [token.position for token in seen]
            gives = self.rule.gives(Asked(self.index, q_head, position, logits, positions))
            given.append(dict(zip(positions, gives, strict=True)))
        return outs, given

    def _summed(self, given: Sequence[list[dict[int, float]]], position: int, new: range) -> float:
        """What query heads said of a position, over the queries."""
        total = 0.0
        for t, query in enumerate(new):
            amounts = [answers[t].get(position, 0.0) for answers in given]
            together = max(amounts) if self.rule.heads == "max" else math.fsum(amounts)
            total += self.rule.weight(new[-1] - query) * together
        return total if self.rule.heads == "max" else total / len(given)


def _noise(*words: int) -> float:
    """Gumbel noise from (seed, layer, head, query position, key position): murmur3's finaliser, word by word."""
    state = _finalised((words[0] + 0x9E3779B9) % 2**32)
    for word in words[1:]:
        state = _finalised(state ^ word)
    return -math.log(-math.log((state // 2**9 + 0.5) / 2**23))


def _finalised(word: int) -> int:
    word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
    word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
    return word ^ word >> 16


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
