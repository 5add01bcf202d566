"""Teacher-forced text through a cache, its next-token distributions compared with the full cache's.

Both caches see the same tokens. The bounded one takes T at a time, so T is part of every result: a chunk sees all of
itself whatever the slots hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvlite.engine.engine import Engine
from kvlite.evaluation.journal import Scored, Span, span_of
from kvlite.evaluation.suites import ForcedText

BLOCK = 64
"""Tokens the full cache takes at a time, about, and that are compared at once: any chunks give the same logits."""


@dataclass(slots=True)
class _Row:
    number: int
    text: ForcedText
    spans: dict[int, Span] = field(default_factory=dict)  # by `upto`, ascending as the text is fed

    def span(self, before: int) -> Span:
        """The span of a token with so many before it."""
        over, upto = span_of(before)
        return self.spans.setdefault(upto, Span(over, upto))


def score_texts(
    engine: Engine,
    full: Engine | None,
    texts: Sequence[tuple[int, ForcedText]],
    tell: Callable[[float], None] = lambda done: None,
) -> list[Scored]:
    """Feed numbered texts, one per row, as many tokens at a time as the plan of `engine` says, and compare with `full`.

    Without `full` the distributions are compared with themselves. `tell` is told how many are done, in parts too.
    """
    rows = [_Row(number, text) for number, text in texts]
    for each in filter(None, (engine, full)):
        for index in range(len(rows)):
            each.rows.reset(index)
    longest = max(len(row.text.ids) for row in rows)
    chunk = engine.plan.chunk
    block = chunk * max(1, BLOCK // chunk)
    for start in range(0, longest, block):
        expected = None if full is None else _fed(full, rows, start, block)
        for at in range(0, min(block, longest - start), chunk):
            found = _fed(engine, rows, start + at, chunk)
            old = found if expected is None else [logits[at : at + chunk] for logits in expected]
            for part in range(0, chunk, BLOCK):  # in float32 all of them would take gigabytes
                new, known = ([logits[part : part + BLOCK] for logits in each] for each in (found, old))
                _compare(rows, start + at + part, new, known)
        tell(len(rows) * min(1.0, (start + block) / longest))
    return [Scored(row.number, len(row.text.ids), tuple(row.spans.values())) for row in rows]


def _fed(engine: Engine, rows: Sequence[_Row], start: int, count: int) -> list[Tensor]:
    """Feed every row its ids from `start` on; for each the logits [t, V] behind them."""
    pieces = [row.text.ids[start : start + count] for row in rows]
    logits = engine.score(pieces)  # [n, T, V], aligned on the right
    return [each[logits.shape[1] - len(piece) :] for each, piece in zip(logits, pieces, strict=True)]


def _compare(rows: Sequence[_Row], start: int, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Score the tokens behind those from `start` on by the logits of each row, and add the scores to its spans."""
    scored = [
        [at for at in range(len(logits)) if row.text.unscored <= start + at + 1 < len(row.text.ids)]
        for row, logits in zip(rows, found, strict=True)
    ]
    targets = [(row, start + at + 1) for row, places in zip(rows, scored, strict=True) for at in places]
    if not targets:
        return
    new, old = (
        torch.cat([logits[places] for logits, places in zip(each, scored, strict=True)]).float().log_softmax(-1)
        for each in (found, expected)
    )
    ids = torch.tensor([[row.text.ids[index]] for row, index in targets], device=new.device)
    values = torch.stack(
        [
            -new.gather(-1, ids)[:, 0],
            (old.exp() * (old - new)).sum(-1).clamp(min=0.0),  # rounding may take it below
            (old.argmax(-1) == new.argmax(-1)).float(),
        ]
    )
    for (row, index), nll, kl, agreed in zip(targets, *values.tolist(), strict=True):
        span = row.span(index)
        span.tokens += 1
        span.nll += nll
        span.kl += kl
        span.agreed += int(agreed)
