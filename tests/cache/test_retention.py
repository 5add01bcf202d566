"""The rest of a row's spans of positions."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from pytest import MonkeyPatch

from kvlite.cache import retention
from kvlite.cache.retention import MOST_SPANS, kept_spans


@given(kept=st.lists(st.booleans(), min_size=1, max_size=80), start=st.integers(0, 40), length=st.integers(1, 60))
def test_spans_hold_what_is_left_and_little_else(kept, start, length):
    end, seen = start + length, len(kept)
    with MonkeyPatch.context() as patch:
        patch.setattr(retention, "kept_by_position", lambda *_: torch.tensor(kept, dtype=torch.float64))
        spans = kept_spans(None, 0, (start, end), seen)
    held = [place for a, b in spans for place in range(a, b)]
    left = [place for place in range(start, end) if place >= seen or kept[place]]
    runs = sum(after - before > 1 for before, after in pairwise(left)) + bool(left)
    assert held == sorted(set(held)) and set(left) <= set(held) <= set(range(start, end))
    assert len(spans) == min(runs, MOST_SPANS) and (runs > MOST_SPANS or held == left)
    assert all(a in left and b - 1 in left for a, b in spans)
