"""The eviction policies. Their formulas, papers and departures from these are in docs/policies.md. Loads no torch.

A[h, t, j] is the probability that query t of head h gives token j; s_j is what token j is known by, per KV head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlite.cache.policy import Candidates, Policy
from kvlite_kernels.kinds import Heads, Noise, Statistic

if TYPE_CHECKING:
    from torch import Tensor

MOST_POOLED = 101
_ODD = f"an odd number of positions up to {MOST_POOLED}"


@dataclass(frozen=True, slots=True)
class Full(Policy):
    """Keep everything; only tokens that a sliding window has passed make room."""

    name = "full"
    summary = "no eviction: stop (or fail) when the budget is full"
    evicts: ClassVar[bool] = False

    sinks: int = 0

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.pos.float()


@dataclass(frozen=True, slots=True)
class Window(Policy):
    """Keep the first tokens and the last ones: StreamingLLM (https://arxiv.org/abs/2309.17453)."""

    name = "window"
    summary = "StreamingLLM: the first tokens and the most recent ones, attention-free"

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.pos.float()  # a recent window besides would leave pins no room


@dataclass(frozen=True, slots=True)
class KeyDiff(Policy):
    """Keep the tokens whose keys differ most from the mean of all unit keys: https://arxiv.org/abs/2504.15364."""

    name = "keydiff"
    summary = "KeyDiff: the tokens whose keys differ most from the average key, attention-free"

    sinks: int = 0

    def score(self, candidates: Candidates) -> Tensor:
        keys = candidates.keys.float()
        unit = keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        unit = unit.masked_fill((candidates.pos < 0)[..., None], 0.0)
        total = unit.sum(-2)
        anchor = total / total.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        cosine: Tensor = (unit @ anchor[..., None])[..., 0]
        return -cosine


@dataclass(frozen=True, slots=True)
class TOVA(Policy):
    """Keep what the last query attends to most, the same in all heads of a layer: https://arxiv.org/abs/2401.06104."""

    name = "tova"
    summary = "TOVA: the tokens that the last query attends to most, the same in all heads of a layer"
    statistic = Statistic.MASS

    sinks: int = 0
    observed: int | None = 1
    heads: Heads = "layer"

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.statistic


@dataclass(frozen=True, slots=True)
class H2O(Policy):
    """Keep the largest s_j <- s_j + sum_t A, and the most recent half: https://arxiv.org/abs/2306.14048."""

    name = "h2o"
    summary = "H2O as published: accumulated attention mass, half of the slots recent"
    statistic = Statistic.MASS

    sinks: int = 0

    def recent(self, slots: int) -> int:
        return max(1, slots // 2)

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.statistic


@dataclass(frozen=True, slots=True)
class HeavyHitter(Policy):
    """Keep the spans with most attention lately: H2O with its defects repaired.

    The sum fades, s_j <- decay s_j + sum_t A, since a plain one favours what has been summed for longest; a token's
    rank is the mean of s over the `pooled` positions around it, since what was said is of use as a span only; and a
    new token has `grace`, since it has received next to nothing. `recent_share` of the slots are the recent window.
    """

    name = "heavy-hitter"
    summary = "H2O repaired: attention that fades, shared by neighbours, sinks, a recent window"
    statistic = Statistic.MASS

    decay: float = 0.95
    grace: int = 4
    recent_share: float = 0.25
    pooled: int = 9

    def __post_init__(self) -> None:
        Policy.__post_init__(self)
        self._check("grace", self.grace >= 1, "1 or more")
        self._check("recent_share", 0 <= self.recent_share < 1, "0 or more and less than 1")
        self._check("pooled", self.pooled % 2 == 1 and 1 <= self.pooled <= MOST_POOLED, _ODD)

    def recent(self, slots: int) -> int:
        return max(self.grace, int(slots * self.recent_share))

    def score(self, candidates: Candidates) -> Tensor:
        if self.pooled == 1:
            return candidates.statistic
        return mean_of_neighbours(candidates.statistic, candidates.pos, self.pooled // 2)


@dataclass(frozen=True, slots=True)
class Replay(Policy):
    """Keep what it takes to repeat the text: KVzip's score (https://arxiv.org/abs/2505.23416), inside the bound.

    Before any token of a chunk is evicted, its queries ask once more, moved behind it; s_j is the attention that token
    j of the chunk receives from them, of each query the most among the heads that share a KV head. Answers are fed
    again for it. `recent_share` of the slots are the recent window. With `bias` what a chunk evicts leaves its
    attention to the nearest key that stays, after attention matching (https://arxiv.org/abs/2602.16284).
    """

    name = "replay"
    summary = "KVzip inside the bound: what it takes to repeat the text, asked by its own queries (the default)"
    statistic = Statistic.MASS
    echoes: ClassVar[bool] = True
    at_once: ClassVar[float] = 2.0

    heads: Heads = "max"
    grace: int = 4
    recent_share: float = 0.25
    bias: bool = True

    def __post_init__(self) -> None:
        Policy.__post_init__(self)
        self._check("grace", self.grace >= 1, "1 or more")
        self._check("recent_share", 0 <= self.recent_share < 1, "0 or more and less than 1")

    @property
    def has_bias(self) -> bool:
        return self.bias

    def recent(self, slots: int) -> int:
        return max(self.grace, int(slots * self.recent_share))

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.statistic


@dataclass(frozen=True, slots=True)
class Scissorhands(Policy):
    """Keep the tokens that were least often below an equal share of attention, A < 1 / t, and the `newest`.

    https://arxiv.org/abs/2305.17118. A record of the last 400 queries would take 50 bytes a slot: in decode the count
    fades by 1 / `observed` a query instead, in 4.
    """

    name = "scissorhands"
    summary = "Scissorhands: the tokens that recent queries least often gave less than an equal share"
    statistic = Statistic.BELOW

    sinks: int = 0
    observed: int | None = 400
    newest: int = 10

    def __post_init__(self) -> None:
        Policy.__post_init__(self)
        self._check("newest", self.newest >= 1, "1 or more")

    def recent(self, slots: int) -> int:
        return self.newest

    def score(self, candidates: Candidates) -> Tensor:
        return -candidates.statistic


@dataclass(frozen=True, slots=True)
class Keyformer(Policy):
    """Keep the largest s_j <- s_j + sum_t softmax_j((x + g) / tau) over logits x with Gumbel noise g.

    https://arxiv.org/abs/2403.09054. Where keys are evicted, noise and temperature keep the softmax from growing ever
    more certain of the rest. The noise is a hash, so that an answer depends on no neighbour in a batch; tau rises over
    the first `ramp` positions, since nobody knows how long a conversation will be.
    """

    name = "keyformer"
    summary = "Keyformer: accumulated attention, regularised by Gumbel noise and a rising temperature"
    statistic = Statistic.GUMBEL

    sinks: int = 0
    recent_share: float = 0.3
    seed: int = 0
    first_temperature: float = 1.0
    last_temperature: float = 2.0
    ramp: int = 1024

    def __post_init__(self) -> None:
        Policy.__post_init__(self)
        self._check("recent_share", 0 <= self.recent_share < 1, "0 or more and less than 1")
        self._check("first_temperature", self.first_temperature > 0, "more than 0")
        self._check("last_temperature", self.last_temperature > 0, "more than 0")
        self._check("ramp", self.ramp >= 1, "1 or more")

    @property
    def noise(self) -> Noise:
        return Noise(self.seed, self.first_temperature, self.last_temperature, self.ramp)

    def recent(self, slots: int) -> int:
        return max(1, int(slots * self.recent_share))

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.statistic


@dataclass(frozen=True, slots=True)
class SnapKV(Policy):
    """Keep the tokens in whose neighbourhood the last `observed` queries attend most, and those queries' own.

    https://arxiv.org/abs/2404.14469. The paper evicts once, after the prompt; here every chunk and every decoded token
    does. A token's rank is the mean over the `pooled` positions around it that are held.
    """

    name = "snapkv"
    summary = "SnapKV: the tokens, and their neighbours, that the last queries attend to most"
    statistic = Statistic.MASS

    sinks: int = 0
    observed: int | None = 32
    pooled: int = 5

    def __post_init__(self) -> None:
        Policy.__post_init__(self)
        self._check("observed", self.observed is not None, "a number of queries")
        self._check("pooled", self.pooled % 2 == 1 and 1 <= self.pooled <= MOST_POOLED, _ODD)

    def recent(self, slots: int) -> int:
        assert self.observed is not None
        return max(1, min(self.observed, slots // 2))

    def score(self, candidates: Candidates) -> Tensor:
        return mean_of_neighbours(candidates.statistic, candidates.pos, self.pooled // 2)


@dataclass(frozen=True, slots=True)
class Pyramid(SnapKV):
    """Keep what SnapKV keeps, with slots that fall linearly with depth: PyramidKV (https://arxiv.org/abs/2406.02069).

    Beside the recent window w that every layer has, layers go from (2 - 1 / beta) (S - w) to (S - w) / beta slots, with
    S their mean. What the first would have beyond the model's window, the others share.
    """

    name = "pyramid"
    summary = "PyramidKV: SnapKV with many slots in the first layers and few in the last"

    beta: int = 20

    def __post_init__(self) -> None:
        SnapKV.__post_init__(self)
        self._check("beta", self.beta >= 1, "1 or more")

    def layer_slots(self, slots: int, most: int, depth: int, layers: int) -> int:
        if layers == 1:
            return slots
        window = min(slots, self.recent(slots))
        mean = slots - window
        top = min(2 * mean - mean // self.beta, most - window)
        bottom = 2 * mean - top
        return window + top - (top - bottom) * depth // (layers - 1)


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
    """For each offset from -reach to reach a copy of `values` [..., N] shifted by it, with `beyond` past the ends."""
    *rows, num_values = values.shape
    padded = values.new_full((*rows, num_values + 2 * reach), beyond)
    padded.narrow(-1, reach, num_values).copy_(values)
    windows = padded.unfold(-1, 2 * reach + 1, 1).movedim(-1, 0)
    return values.new_empty(windows.shape).copy_(windows)  # in this order of dimensions
