"""The lines that say how far a batch is."""

from __future__ import annotations

from kvlite.batch.item import Code, Failure, Item, Outcome
from kvlite.batch.tally import Tally


def test_the_progress_line_says_all_that_one_watches() -> None:
    tally = Tally(total=10, shared_tokens=1200, generated=50)
    tally.add(Outcome(Item(0, 1, "a")))
    tally.add(Outcome(Item(1, 2, "b"), failure=Failure(Code.TIMEOUT, "late")))
    assert tally.progress(4.0, 0, "3/4", 500_000, 2_000_000) == (
        "2/10 · 1 err · 0.5 req/s · 12 tok/s · 3/4 rows · KV 500 kB of 2.00 MB · 1,200 tok shared · ETA 00:16"
    )


def test_the_records_of_lines_that_are_not_asked_for_count_for_nothing() -> None:
    tally = Tally(total=100, resumed=1000)
    tally.add(Outcome(Item(1000, 1001, "a")))
    assert tally.progress(1.0, 9, "1/1", 0, 0).startswith("10/100 · 0 err")
    assert tally.progress(1.0, 9, "1/1", 0, 0).endswith("ETA 01:30")


def test_without_a_count_of_lines_there_is_no_end_to_foretell() -> None:
    assert Tally().progress(0.0, 0, "0/0", 0, 0) == "0 · 0 err · 0/0 rows · KV 0 B of 0 B"
