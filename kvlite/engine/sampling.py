"""Drawing the next token on the device. No generator state: a draw depends on the request's seed and the token's index.

So an answer does not depend on its neighbours in a batch, and a request with the same seed gives the same answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.engine.request import NO_RULES, Sampling, TokenRules
from kvlite.engine.row import Row
from kvlite.engine.rules import forbid, masked

INVALID = -1
_MASK = 2**64 - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True, slots=True)
class Draw:
    """Settings of one row's draw: its sampling, the index of the token, the ids used so far, and rules on the next.

    The rules are about the ids `said` and the `stop_ids`; `answer` are the ids of the answer so far. `mask` has a bit
    for each id that may come; None lets all come.
    """

    sampling: Sampling
    index: int
    used: Collection[int]
    rules: TokenRules = NO_RULES
    said: Sequence[int] = ()
    stop_ids: frozenset[int] = frozenset()
    answer: Sequence[int] = ()
    mask: bytes | None = None

    @classmethod
    def of(cls, row: Row) -> Draw:
        """The draw of a row's next token."""
        assert row.job is not None
        request, answer, guide = row.job.request, row.job.answer, row.job.guide
        mask = None if guide is None else guide.mask()
        return cls(request.sampling, len(answer), row.used, request.rules, row.said, request.stop_ids, answer, mask)


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id per row from logits [n, V], or INVALID where they are no numbers; waits for the device once.

    Greedy rows take the exact maximum. A mask comes last and is always held to: of the ids that a row's rules leave
    none of, they forbid none.
    """
    if any(draw.sampling.repetition_penalty != 1.0 for draw in draws):
        logits = _penalised(logits.float(), draws)
    if any(draw.sampling.shifts for draw in draws):
        logits = _shifted(logits, draws)
    unruled = logits
    if any(draw.rules is not NO_RULES for draw in draws):
        logits = logits.float().clone()
        for scores, draw in zip(logits, draws, strict=True):
            forbid(scores, draw.rules, draw.said, draw.index, draw.stop_ids)
    if any(draw.mask is not None for draw in draws):
        logits = masked(logits, [draw.mask for draw in draws], unruled)
    highest, chosen = logits.max(-1)
    if not all(draw.sampling.is_greedy for draw in draws):
        chosen = _drawn(logits.float(), chosen, draws)
    if logits.device.type == "cpu":
        pairs = zip(chosen.tolist(), highest.tolist(), strict=True)
        return [token if math.isfinite(logit) else INVALID for token, logit in pairs]
    return torch.where(highest.isfinite(), chosen, INVALID).tolist()


def _penalised(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Divide the positive logits of used ids by the penalty, and multiply the negative ones with it.

    As CTRL does, https://arxiv.org/abs/1909.05858.
    """
    penalty = torch.ones_like(logits)
    for row, draw in enumerate(draws):
        if draw.sampling.repetition_penalty != 1.0:
            used = torch.tensor([*draw.used], dtype=torch.int64, device=logits.device)
            penalty[row, used] = draw.sampling.repetition_penalty
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def _shifted(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Subtract the penalties of ids that the answer holds, and add the biases: a copy in fp32.

    As OpenAI describes them: each id's logit loses its count in the answer times the frequency penalty, and the
    presence penalty where that count is not zero.
    """
    logits = logits.float().clone()
    for scores, draw in zip(logits, draws, strict=True):
        sampling, counts = draw.sampling, Counter(draw.answer)
        shifts = dict(sampling.logit_bias)
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token, count in counts.items():
                penalty = sampling.presence_penalty + count * sampling.frequency_penalty
                shifts[token] = shifts.get(token, 0.0) - penalty
        if shifts:
            scores[torch.tensor([*shifts], device=logits.device)] += torch.tensor(
                [*shifts.values()], device=logits.device
            )
    return logits


def _drawn(logits: Tensor, highest: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Temperature, then top-k, top-p and min-p, then the inverse of the cumulative distribution: ids int64 [n].

    Greedy rows take the ids in `highest`.
    """
    settings = [
        (one.temperature, one.top_k or math.inf, one.top_p, one.min_p, uniform(one.seed, draw.index))
        for draw in draws
        for one in [draw.sampling]
    ]
    columns = torch.tensor(settings, dtype=torch.float32, device=logits.device).T[..., None]
    temperature, top_k, top_p, min_p, number = columns
    scaled = logits / torch.where(temperature == 0, 1.0, temperature)
    probabilities, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    kept = torch.arange(logits.shape[-1], device=logits.device) < top_k
    probabilities = probabilities * kept
    total = probabilities.sum(-1, keepdim=True)
    before = probabilities.cumsum(-1) - probabilities
    kept &= before < top_p * total
    kept &= (probabilities >= min_p * probabilities[:, :1]) & (probabilities > 0)
    kept[:, 0] = True
    cumulative = (probabilities * kept).cumsum(-1)
    target = number * cumulative[:, -1:]
    place = (cumulative <= target).sum(-1)
    last = kept.sum(-1) - 1  # the filters keep a prefix; a target rounded up to the whole stays inside it
    ids = order.gather(-1, place.minimum(last)[:, None])[:, 0]
    return torch.where(temperature[:, 0] == 0, highest, ids)


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that is a hash of (seed, index): SplitMix64 of both."""
    return (_splitmix(_splitmix(seed) ^ index) >> 11) / 2**53


def _splitmix(value: int) -> int:
    value = (value + _STEP) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)
