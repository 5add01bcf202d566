"""Round ticks around what is drawn, and places that stay inside the frame."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from kvlite.record.page import HEIGHT, WIDTH, round_ticks, x_at, y_at


@given(st.just(0.0) | st.floats(1e-9, 1e6), st.just(0.0) | st.floats(1e-9, 1e6))
def test_ticks_are_few_round_numbers_around_what_is_shown(one: float, other: float) -> None:
    lowest, highest = min(one, other), max(one, other)
    if 0 < highest - lowest < 1e-9 * highest:  # nothing of double precision is left to show
        return
    ticks = round_ticks(lowest, highest)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= lowest + 1e-6 * (ticks[-1] - ticks[0]) and highest <= ticks[-1] + 1e-6 * (ticks[-1] - ticks[0])
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert any(math.isclose(mantissa, round_number, rel_tol=1e-6) for round_number in (1, 2, 2.5, 5))


def test_an_axis_goes_from_end_to_end_and_no_further() -> None:
    assert [x_at(value, (0.0, 50.0, 100.0), WIDTH) for value in (-1, 0, 50, 100, 200)] == [
        0,
        0,
        WIDTH / 2,
        WIDTH,
        WIDTH,
    ]
    assert [y_at(value, (0.0, 100.0)) for value in (-1, 0, 50, 100, 200)] == [HEIGHT, HEIGHT, HEIGHT / 2, 0, 0]
