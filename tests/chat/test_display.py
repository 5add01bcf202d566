import pytest

from kvlite.chat.display import bar, status_line
from kvlite.engine.request import Sampling
from kvlite.memory.counts import KVCounts

COUNTS = KVCounts(2 * 10**9, 2 * 10**9, 1_310_000_000, 1_400_000_000, 9870, 2498, 7372, "heavy-hitter", "float16")


@pytest.mark.parametrize(("share", "cells"), [(0.0, 0), (0.001, 1), (0.5, 4), (1.0, 8), (1.5, 8)])
def test_a_bar_shows_any_use_and_never_overflows(share, cells):
    assert bar(share) == "█" * cells + "░" * (8 - cells)


def test_the_status_line_gives_bytes_tokens_and_seed():
    line = status_line(COUNTS, None, Sampling(temperature=1.0, seed=7))
    assert line == "KV 1.31 GB/2.00 GB █████░░░ 66% │ kept 2,498 / seen 9,870 tok │ seed 7"


def test_a_greedy_chat_has_no_seed_to_show():
    assert status_line(COUNTS, None, Sampling()).endswith("│ greedy")
