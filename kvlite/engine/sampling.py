"""Drawing the next token on the device. No generator state: a draw depends on the request's seed and the token's index.

So an answer does not depend on its neighbours in a batch, and a request with the same seed gives the same answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.engine.request import Sampling

INVALID = -1
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """How to draw one row's token: its sampling, the index of the token, and the ids used so far."""

    sampling: Sampling
    index: int
    used: Collection[int]


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id per row from logits [n, V], or INVALID where they are no numbers; waits for the device once.

    Greedy rows take the exact maximum.
    """
    logits = logits.float()
    for row, draw in enumerate(draws):
        if draw.sampling.repetition_penalty != 1.0:
            _penalise_(logits[row], draw)
    highest, chosen = logits.max(-1)
    if any(not draw.sampling.is_greedy for draw in draws):
        greedy = torch.tensor([draw.sampling.is_greedy for draw in draws], device=logits.device)
        chosen = torch.where(greedy, chosen, _draw(logits, draws))
    chosen = torch.where(highest.isfinite(), chosen, INVALID)
    ids: list[int] = chosen.tolist()
    return ids


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that is a hash of (seed, index): SplitMix64 of both."""
    return (_splitmix(_splitmix(seed) ^ index) >> 11) / 2**53


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _penalise_(logits: Tensor, draw: Draw) -> None:
    """Divide the positive and multiply the negative logits of used ids (CTRL, https://arxiv.org/abs/1909.05858)."""
    used = torch.tensor(sorted(draw.used), device=logits.device)
    held = logits[used]
    penalty = draw.sampling.repetition_penalty
    logits[used] = torch.where(held > 0, held / penalty, held * penalty)


def _draw(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Temperature, then top-k, top-p and min-p, then the inverse of the cumulative distribution: ids int64 [n]."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits.device)[:, None]

    vocab = logits.shape[-1]
    samplings = [draw.sampling for draw in draws]
    scaled = logits / column([1.0 if s.is_greedy else s.temperature for s in samplings])
    probabilities, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=logits.device)
    kept = rank < column([float(s.top_k or vocab) for s in samplings])
    probabilities = probabilities * kept
    total = probabilities.sum(-1, keepdim=True)
    before = probabilities.cumsum(-1) - probabilities
    kept &= before < column([s.top_p for s in samplings]) * total
    kept &= probabilities >= column([s.min_p for s in samplings]) * probabilities[:, :1]
    kept[:, 0] = True
    cumulative = (probabilities * kept).cumsum(-1)
    target = column([uniform(draw.sampling.seed, draw.index) for draw in draws]) * cumulative[:, -1:]
    drawn = (cumulative <= target).sum(-1)
    last = kept.sum(-1) - 1  # the filters keep a prefix; a target rounded up to the whole stays inside it
    return order.gather(-1, drawn.minimum(last)[:, None])[:, 0]
