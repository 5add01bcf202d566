"""Rules on the next token, as transformers' greedy decoding applies them: forbidden ids get the logit -inf."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers import NoBadWordsLogitsProcessor, NoRepeatNGramLogitsProcessor

from kvlite.engine.request import TokenRules


def forbid(scores: Tensor, rules: TokenRules, said: Sequence[int], index: int, stop_ids: frozenset[int]) -> None:
    """Write -inf into `scores` [V], which are fp32, for the ids that must not be token `index` of an answer.

    `said` are all ids of the conversation so far.
    """
    device = scores.device
    forbidden = [rules.suppress_tokens]
    forbidden += [rules.begin_suppress_tokens] if index == 0 else []
    forbidden += [tuple(sorted(stop_ids))] if index < rules.min_new_tokens else []
    for banned in filter(None, forbidden):
        scores[_places(banned, len(scores), device)] = -torch.inf
    if size := rules.no_repeat_ngram_size:
        ids = torch.tensor([said], dtype=torch.int64, device=device)
        scores[:] = NoRepeatNGramLogitsProcessor(size)(ids, scores[None])[0]
    words = _known(rules.bad_words_ids, len(scores))
    if words:
        recent = said[-max(map(len, words)) :]  # no word reaches further back
        ids = torch.tensor([recent], dtype=torch.int64, device=device)
        scores[:] = _bad_words(words, stop_ids, len(scores), device)(ids, scores[None])[0]


def masked(scores: Tensor, masks: Sequence[bytes | None], unruled: Tensor) -> Tensor:
    """The `scores` [n, V] with -inf for the ids whose bit is not set in the row's mask; None forbids none.

    A row of which its rules leave nothing that the mask allows has the scores it had before them, `unruled` [n, V].
    """
    vocab, device = scores.shape[-1], scores.device
    size = -(-vocab // 8)
    rows = [b"\xff" * size if mask is None else mask[:size].ljust(size, b"\0") for mask in masks]
    packed = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), size).to(device)
    bits = (packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1  # [n, V / 8, 8]
    forbidden = bits.flatten(1)[:, :vocab] == 0
    left = scores.masked_fill(forbidden, -torch.inf)
    if unruled is scores:
        return left
    is_stuck = (left == -torch.inf).all(-1, keepdim=True)
    return torch.where(is_stuck, unruled.masked_fill(forbidden, -torch.inf), left)


@lru_cache(maxsize=64)
def _places(ids: tuple[int, ...], vocab: int, device: torch.device) -> Tensor:
    return torch.tensor([index for index in ids if index < vocab], dtype=torch.int64, device=device)


@lru_cache(maxsize=16)
def _known(words: tuple[tuple[int, ...], ...], vocab: int) -> tuple[tuple[int, ...], ...]:
    """The words that the model can say at all."""
    return tuple(word for word in words if max(word) < vocab)


@lru_cache(maxsize=16)
def _bad_words(
    words: tuple[tuple[int, ...], ...], stop_ids: frozenset[int], vocab: int, device: torch.device
) -> NoBadWordsLogitsProcessor:
    """transformers' own processor, which lets a stop id that is a word of its own pass.

    It keeps tensors of the first scores it sees, so there is one for each vocabulary and device.
    """
    return NoBadWordsLogitsProcessor([list(word) for word in words], sorted(stop_ids) or None)
