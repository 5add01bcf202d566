from dataclasses import replace

import pytest

from kvlite.chat.gauge import bar, gauge, of_bytes, status_line
from kvlite.engine.request import Sampling
from kvlite.memory.counts import KVCounts
from kvlite.record.table import kept_percent

COUNTS = KVCounts(2 * 10**9, 2 * 10**9, 1_310_000_000, 1_400_000_000, 9870, 2498, 7372, "heavy-hitter", "float16")
FULL = "KV 1.31/2.00 GB ███▉░░ kept 2,498 of 9,870 · 41 tok/s · seed 7"


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0.0, "░░░░░░"), (1e-9, "▏░░░░░"), (0.17, "█░░░░░"), (0.5, "███░░░"), (0.999, "█████▉"), (1.0, "██████")],
)
def test_a_bar_shows_any_use_and_is_full_only_when_all_is(share, drawn):
    assert bar(share) == drawn


@pytest.mark.parametrize(
    ("share", "written"),
    [(0.0, "0 %"), (0.0001, "<1 %"), (0.5, "50 %"), (0.994, ">99 %"), (1.0, "100 %")],
)
def test_a_percentage_never_rounds_to_nothing_or_to_all(share, written):
    assert kept_percent(share) == written


def test_bytes_of_bytes_name_a_unit_once():
    assert (of_bytes(1_310_000_000, 2 * 10**9), of_bytes(5_000, 2 * 10**9)) == ("1.31/2.00 GB", "5.00 kB/2.00 GB")


def test_what_matters_least_goes_first_where_the_screen_is_narrow():
    drawn = [gauge(COUNTS, width, ("41 tok/s", "seed 7")) for width in range(80, 0, -1)]
    assert all(len(line) <= width for line, width in zip(drawn, range(80, 0, -1), strict=True))
    assert list(dict.fromkeys(drawn))[:5] == [
        FULL,
        FULL.removesuffix(" · seed 7"),
        FULL.removesuffix(" · 41 tok/s · seed 7"),
        "KV 1.31/2.00 GB · kept 2,498 of 9,870",
        "KV 1.31/2.00 GB",
    ]


def test_heads_that_are_full_are_counted_where_tokens_go_and_others_have_room():
    some = replace(COUNTS, full_heads=60, heads=90)
    assert gauge(some, 80, ("41 tok/s",)).endswith("kept 2,498 of 9,870 · 60 of 90 heads full · 41 tok/s")
    for other in (replace(some, full_heads=90), replace(some, tokens_evicted=0), replace(some, full_heads=0)):
        assert gauge(other, 80, ("41 tok/s",)) == FULL.removesuffix(" · seed 7")


def test_the_line_under_the_prompt_gives_the_seed_of_a_sampled_chat_alone():
    assert status_line(COUNTS, None, Sampling(temperature=1.0, seed=7), 80).endswith("9,870 · seed 7")
    assert status_line(COUNTS, None, Sampling(), 80).endswith("· greedy")
    assert "░░░░░░" in status_line(replace(COUNTS, live_bytes=0), None, Sampling(), 80)
