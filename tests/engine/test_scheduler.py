"""Whom the next forward pass feeds."""

from __future__ import annotations

from kvlite.engine.request import Request
from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed, next_feed


def rows_with(*prompts: int | None, chunk: int = 4) -> list[Row]:
    """A row per prompt length, fed `chunk` at once; 0 is a decoding row, None a free one."""
    rows = [Row(index) for index in range(len(prompts))]
    for row, length in zip(rows, prompts, strict=True):
        if length is not None:
            row.begin(Request(str(row.index), tuple(range(length)) or (0,)), chunk, 0)
            assert row.job is not None
            if length == 0:
                row.job.prompt.clear()
                row.unfed = 7
    return rows


def test_nothing_to_do() -> None:
    assert next_feed(rows_with(None, None)) is None


def test_prompts_go_first_and_in_chunks() -> None:
    rows = rows_with(0, 6, 6)
    assert next_feed(rows) == Feed(slice(1, 3), ((0, 1, 2, 3), (0, 1, 2, 3)))


def test_rows_that_decode_share_the_pass_of_a_chunk() -> None:
    rows = rows_with(0, 6, None, 0)
    chunk = next_feed(rows, may_share=lambda row, count: True)
    decode = Feed(slice(0, 4), ((7,), (), (), (7,)), decodes=True)
    assert chunk == Feed(slice(1, 2), ((0, 1, 2, 3),), beside=decode)
    assert next_feed(rows, chunk, may_share=lambda row, count: True) == Feed(slice(1, 2), ((4, 5),), beside=decode)


def test_a_pass_is_shared_by_all_rows_or_not_at_all() -> None:
    rows, asked = rows_with(0, 6, 0), []

    def may_share(row: Row, count: int) -> bool:
        asked.append((row.index, count))
        return row.index != 1

    assert next_feed(rows, may_share=may_share) == Feed(slice(1, 2), ((0, 1, 2, 3),))
    assert asked == [(0, 1), (2, 1), (1, 4)]


def test_a_long_prompt_takes_turns_with_the_rows_that_decode() -> None:
    rows, feed = rows_with(0, 12, 0), None
    fed = []
    for _ in range(5):
        feed = next_feed(rows, feed)
        assert feed is not None
        fed.append("decode" if feed.decodes else "prefill")
    assert fed == ["prefill", "decode", "prefill", "decode", "prefill"]


def test_a_row_in_the_midst_of_its_prompt_is_no_part_of_a_decode_step() -> None:
    rows = rows_with(0, 12, 0)
    assert next_feed(rows, next_feed(rows)) == Feed(slice(0, 3), ((7,), (), (7,)), decodes=True)


def test_neighbouring_prompts_share_a_pass_and_keep_their_own_chunks() -> None:
    assert next_feed(rows_with(2, 9, 0, 3)) == Feed(slice(0, 2), ((0, 1), (0, 1, 2, 3)))


def test_a_pass_holds_no_more_tokens_than_one_chunk_may() -> None:
    rows = rows_with(300, 100, 200, 400, chunk=512)
    assert [next_feed(rows).rows for _ in range(3)] == [slice(0, 1), slice(1, 3), slice(3, 4)]  # type: ignore[union-attr]


def test_all_rows_decode_together_and_idle_ones_are_padding() -> None:
    assert next_feed(rows_with(None, 0, None, 0, None)) == Feed(slice(1, 4), ((7,), (), (7,)), decodes=True)


def test_what_was_not_fed_goes_before_the_next_prompt() -> None:
    row = Row(0, unfed=42)
    row.begin(Request("a", (1, 2), pins=((0, 1),)), 8, 0)
    assert next_feed([row]) == Feed(slice(0, 1), ((42, 1, 2),))
    assert row.pins == ((1, 2),)
