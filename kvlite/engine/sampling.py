"""Drawing the next token on the device. No generator state: a draw depends on the request's seed and the token's index.

So an answer does not depend on its neighbours in a batch, and a request with the same seed gives the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.engine.request import Sampling

INVALID = -1
_MASK = 2**64 - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True, slots=True)
class Draw:
    """Settings of one row's draw: its sampling, the index of the token, and the ids used so far."""

    sampling: Sampling
    index: int
    used: Collection[int]


@dataclass(frozen=True, slots=True)
class Draws:
    """Settings of n draws as tensors of one device: `settings` fp32 [5, n], the rows' `settings_of`.

    `uniform` fp32 [n] in [0, 1], None where every row is greedy; `used` bool [n, V] says which ids are penalised, None
    where no row penalises any.
    """

    settings: Tensor
    uniform: Tensor | None
    used: Tensor | None


def settings_of(sampling: Sampling) -> tuple[float, ...]:
    """Temperature (0: greedy), top-k, top-p, min-p and repetition penalty, each a number whatever is switched off."""
    top_k = float(sampling.top_k or math.inf)
    return sampling.temperature, top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id per row from logits [n, V], or INVALID where they are no numbers; waits for the device once."""
    if all(draw.sampling.is_greedy and draw.sampling.repetition_penalty == 1.0 for draw in draws):
        highest, chosen = logits.max(-1)
        if logits.device.type == "cpu":
            pairs = zip(chosen.tolist(), highest.tolist(), strict=True)
            return [token if math.isfinite(logit) else INVALID for token, logit in pairs]
        return torch.where(highest.isfinite(), chosen, INVALID).tolist()
    ids: list[int] = drawn(logits, _on_device(draws, logits)).tolist()
    return ids


def drawn(logits: Tensor, draws: Draws) -> Tensor:
    """Draw as `sample` does, int64 [n], without waiting for the device: greedy rows take the exact maximum.

    Used ids have positive logits divided and negative ones multiplied by the penalty (CTRL,
    https://arxiv.org/abs/1909.05858).
    """
    logits = logits.float()
    if draws.used is not None:
        penalty = draws.settings[-1, :, None]
        logits = torch.where(draws.used, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    highest, chosen = logits.max(-1)
    if draws.uniform is not None:
        chosen = torch.where(draws.settings[0] == 0, chosen, _inverted(logits, draws.settings, draws.uniform))
    return torch.where(highest.isfinite(), chosen, INVALID)


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that is a hash of (seed, index): SplitMix64 of both."""
    return (_splitmix(_splitmix(seed) ^ index) >> 11) / 2**53


def _splitmix(value: int) -> int:
    value = (value + _STEP) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _on_device(draws: Sequence[Draw], logits: Tensor) -> Draws:
    samplings = [draw.sampling for draw in draws]
    settings = torch.tensor([settings_of(sampling) for sampling in samplings], device=logits.device).T
    numbers = used = None
    if any(not sampling.is_greedy for sampling in samplings):
        numbers = torch.tensor([uniform(draw.sampling.seed, draw.index) for draw in draws], device=logits.device)
    if any(sampling.repetition_penalty != 1.0 for sampling in samplings):
        used = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        for row, draw in enumerate(draws):
            if draw.sampling.repetition_penalty != 1.0:
                used[row, torch.tensor(sorted(draw.used), dtype=torch.int64, device=logits.device)] = True
    return Draws(settings, numbers, used)


def _inverted(logits: Tensor, settings: Tensor, numbers: Tensor) -> Tensor:
    """Temperature, then top-k, top-p and min-p, then the inverse of the cumulative distribution: ids int64 [n]."""
    temperature, top_k, top_p, min_p = settings[:4, :, None]
    scaled = logits / torch.where(temperature == 0, 1.0, temperature)
    probabilities, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    kept = torch.arange(logits.shape[-1], device=logits.device) < top_k
    probabilities = probabilities * kept
    total = probabilities.sum(-1, keepdim=True)
    before = probabilities.cumsum(-1) - probabilities
    kept &= before < top_p * total
    kept &= probabilities >= min_p * probabilities[:, :1]
    kept[:, 0] = True
    cumulative = (probabilities * kept).cumsum(-1)
    target = numbers[:, None] * cumulative[:, -1:]
    place = (cumulative <= target).sum(-1)
    last = kept.sum(-1) - 1  # the filters keep a prefix; a target rounded up to the whole stays inside it
    ids: Tensor = order.gather(-1, place.minimum(last)[:, None])[:, 0]
    return ids
