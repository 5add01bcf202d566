"""Teacher-forced text through a bounded cache, its next-token distributions compared with the full cache's.

Both caches see the same tokens. The bounded one takes T at a time, so T is part of every result: a chunk sees all of
itself whatever the slots hold.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvlite.engine.engine import Engine
from kvlite.evaluation.results import Scored, Span
from kvlite.evaluation.suites import ForcedText

BLOCK = 64
"""Tokens the full cache takes at a time, about: it gives the same logits in any chunks."""

_FIRST_SPAN = 64


@dataclass(slots=True)
class _Sums:
    """Sums over the tokens of one span of one text."""

    tokens: int = 0
    nll: float = 0.0
    full_nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0


@dataclass(slots=True)
class _Row:
    number: int
    text: ForcedText
    spans: dict[int, _Sums] = field(default_factory=dict)  # by `upto`

    def scored(self) -> Scored:
        spans = [
            Span(0 if upto == _FIRST_SPAN else upto // 2, upto, s.tokens, s.nll, s.full_nll, s.kl, s.agreed)
            for upto, s in sorted(self.spans.items())
        ]
        return Scored(self.number, len(self.text.ids), tuple(spans))


def block_tokens(chunk: int) -> int:
    """Tokens the full cache takes at a time beside a bounded one that takes `chunk`."""
    return chunk * max(1, BLOCK // chunk)


def score_texts(
    full: Engine, bounded: Engine | None, texts: Sequence[tuple[int, ForcedText]], chunk: int
) -> Generator[float, None, list[Scored]]:
    """Feed numbered texts, one per row, to both caches, `chunk` tokens at a time to the bounded one.

    Without a bounded cache the full one is scored. Yields the share of the tokens that is done.
    """
    rows = [_Row(number, text) for number, text in texts]
    for engine in filter(None, (full, bounded)):
        for index in range(len(rows)):
            engine.reset(index)
    longest = max(len(row.text.ids) for row in rows)
    block = block_tokens(chunk)
    for start in range(0, longest, block):
        expected = _fed(full, rows, start, block)
        if bounded is None:
            _compare(rows, expected, start, expected, start)
        else:
            for first in range(start, min(start + block, longest), chunk):
                _compare(rows, _fed(bounded, rows, first, chunk), first, expected, start)
        yield min(1.0, (start + block) / longest)
    return [row.scored() for row in rows]


@dataclass(frozen=True, slots=True)
class _Logits:
    """Logits [n, T, V], aligned on the right, and the number of ids that each row fed."""

    values: Tensor
    counts: tuple[int, ...]

    def column(self, row: int, offset: int) -> int:
        """The column of the logits behind id `offset` of a row's piece."""
        return self.values.shape[1] - self.counts[row] + offset


def _fed(engine: Engine, rows: Sequence[_Row], start: int, count: int) -> _Logits:
    pieces = [row.text.ids[start : start + count] for row in rows]
    return _Logits(engine.score(pieces), tuple(map(len, pieces)))


def _compare(rows: Sequence[_Row], found: _Logits, start: int, expected: _Logits, block_start: int) -> None:
    """Score the tokens that follow those from `start` on by the logits behind them, and add the scores to the rows."""
    pairs = [
        (index, position)
        for index, row in enumerate(rows)
        for position in range(start, min(start + found.counts[index], len(row.text.ids) - 1))
        if row.text.scored[position + 1]
    ]
    if not pairs:
        return
    row_index = [index for index, _ in pairs]
    new = found.values[row_index, [found.column(index, position - start) for index, position in pairs]]
    old = expected.values[row_index, [expected.column(index, position - block_start) for index, position in pairs]]
    new, old = new.float().log_softmax(-1), old.float().log_softmax(-1)
    targets = torch.tensor([[rows[index].text.ids[position + 1]] for index, position in pairs], device=new.device)
    values = torch.stack(
        [
            -new.gather(-1, targets)[:, 0],
            -old.gather(-1, targets)[:, 0],
            (old.exp() * (old - new)).sum(-1).clamp(min=0.0),  # rounding may take it below
            (old.argmax(-1) == new.argmax(-1)).float(),
        ]
    )
    for (index, position), nll, full_nll, kl, agreed in zip(pairs, *values.tolist(), strict=True):
        sums = rows[index].spans.setdefault(_upto(position + 1), _Sums())
        sums.tokens += 1
        sums.nll += nll
        sums.full_nll += full_nll
        sums.kl += kl
        sums.agreed += int(agreed)


def _upto(before: int) -> int:
    """The upper end of the span that holds a token with so many before it: 64, 128, 256 and so on."""
    upto = _FIRST_SPAN
    while before > upto:
        upto *= 2
    return upto
