"""Records as they are shown: as tables of text, as a page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kvlite.record.page import HEIGHT, WIDTH, Plot
from kvlite.record.plots import batch_plots, record_plots, timeline_plot
from kvlite.record.schema import RunRecord
from kvlite.record.view import MAX_REQUEST_ROWS, record_page, record_tables, run_line, verdict

STARTED = datetime(2025, 11, 20, 20, 11, 30, tzinfo=UTC)
KV = {
    "budget_bytes": 2_000_000_000,
    "budget_source": "flag",
    "policy": "heavy-hitter",
    "dtype": "float16",
    "bytes_per_token": 524_288,
    "capacity_tokens": 3700,
    "reserved_bytes": 1_999_000_000,
    "live_bytes": 1_500_000_000,
    "peak_bytes": 1_998_000_000,
    "tokens_seen": 9870,
    "tokens_kept": 3700,
    "tokens_evicted": 6170,
    "full_cache_bytes": 5_174_722_560,
    "allocated_unused_bytes": 1_000_000,
    "per_layer": [{"layer": n, "kept": kept, "bytes": 0} for n, kept in enumerate((10, 30, 20))],
    "within_budget": True,
}
TERMS = [
    {"name": "weights", "predicted_bytes": 1000, "measured_bytes": 1100},
    {"name": "kv", "predicted_bytes": 3000, "measured_bytes": 3000},
    {"name": "scratch", "predicted_bytes": 50},
]
DEVICE = {
    "total_bytes": 8_000_000_000,
    "free_bytes": 1_200_000_000,
    "self_bytes": 6_000_000_000,
    "other_processes_bytes": 800_000_000,
}


def record(*, kv: dict[str, Any] | None = KV, **fields: Any) -> RunRecord:
    basis = {
        "run_id": "20251120-201130-4f3a9c",
        "command": "chat",
        "argv": ["chat", "llama 7b"],
        "started": STARTED,
        "ended": STARTED + timedelta(seconds=12.34),
        "exit_code": 0,
    }
    return RunRecord.model_validate(basis | {"kv": kv} | fields)


def table(shown: RunRecord, title: str) -> dict[str, tuple[str, ...]]:
    found = next(table for table in record_tables(shown) if table.columns[0] == title)
    return {row[0]: row[1:] for row in found.rows}


def note(shown: RunRecord, title: str) -> str:
    return next(table.note for table in record_tables(shown) if table.columns[0] == title)


def test_what_happened_to_the_cache_is_told_in_order() -> None:
    points = [
        {"t_s": 0.5, "tokens_seen": 10, "kv_bytes": 1000, "allocated_bytes": None},
        {"t_s": 1.25, "tokens_seen": 3700, "kv_bytes": 2_000_000, "allocated_bytes": None, "event": "first eviction"},
        {"t_s": 9.0, "tokens_seen": 9870, "kv_bytes": 1_500_000, "allocated_bytes": None, "event": "KV 2 MB → KV 1 MB"},
    ]
    assert table(record(timeline=points), "At") == {
        "1.2 s": ("3,700", "2.00 MB", "first eviction"),
        "9.0 s": ("9,870", "1.50 MB", "KV 2 MB → KV 1 MB"),
    }


def test_the_verdict_names_budget_peak_and_headroom() -> None:
    shown = record(
        memory={"device": DEVICE, "torch": {"allocated_peak_bytes": 1, "reserved_peak_bytes": 6_310_000_000}}
    )
    assert verdict(shown) == (
        "Stayed inside 2.00 GB: peak KV 1.998 GB (99.9 %), reserved 1.999 GB, "
        "peak VRAM 6.31 GB of 8.00 GB, headroom 1.20 GB."
    )


def test_the_verdict_says_when_the_budget_was_passed() -> None:
    over = KV | {"within_budget": False, "peak_bytes": 2_001_000_000}
    assert verdict(record(kv=over)).startswith("Went over 2.00 GB: peak KV 2.001 GB (100.0 %)")


def test_the_verdict_of_a_run_without_a_cache_names_its_exit_code() -> None:
    assert verdict(record(kv=None, exit_code=4)) == "No KV cache is recorded: the run ended with exit code 4."


def test_a_run_is_named_by_id_command_time_and_exit() -> None:
    assert run_line(record()) == "20251120-201130-4f3a9c · kvlite chat 'llama 7b' · 12.3 s · exit 0"


def test_each_term_has_its_error_and_the_sum_counts_what_has_both() -> None:
    assert table(record(memory={"terms": TERMS}), "Memory") == {
        "weights": ("1.00 kB", "1.10 kB", "+10.0 %"),
        "kv": ("3.00 kB", "3.00 kB", "0 %"),
        "scratch": ("50 B", "-", "-"),
        "sum of both": ("4.00 kB", "4.10 kB", "+2.5 %"),
    }


def test_the_device_is_one_sum() -> None:
    terms = [{"name": "kv", "measured_bytes": 5_900_000_000}]
    assert note(record(memory={"terms": terms, "device": DEVICE}), "Memory") == (
        "8.00 GB total = 1.20 GB free + 800 MB other processes + 5.90 GB measured above + 100 MB unaccounted"
    )


def test_a_device_that_cannot_tell_processes_apart_claims_no_sum() -> None:
    device = DEVICE | {"self_bytes": None, "other_processes_bytes": None}
    shown = record(memory={"terms": TERMS, "device": device})
    assert note(shown, "Memory") == "8.00 GB on the GPU, 1.20 GB free"


def test_the_panel_shows_counts_layers_and_the_full_cache() -> None:
    panel = table(record(), "KV cache")
    assert panel["budget"] == ("2.00 GB = 2,000,000,000 bytes (flag)",)
    assert panel["tokens"] == ("seen 9,870, kept 3,700, evicted 6,170",)
    assert panel["kept per layer"] == ("min 10, median 20, max 30 tokens",)
    assert panel["a full cache"] == ("5.17 GB, 2.6 times the peak",)


def test_answers_beyond_the_first_rows_are_counted() -> None:
    shown = record(requests=[{"id": str(n)} for n in range(MAX_REQUEST_ROWS + 3)], requests_left_out=40)
    assert len(table(shown, "Answer")) == MAX_REQUEST_ROWS
    assert note(shown, "Answer").startswith("43 more answers")


def test_an_empty_record_has_no_empty_tables() -> None:
    assert record_tables(record(kv=None)) == []


TIMELINE = [
    {"t_s": 0.0, "tokens_seen": 0, "kv_bytes": 0},
    {"t_s": 1.0, "tokens_seen": 50, "kv_bytes": 10**9, "event": "evict"},
    {"t_s": 2.0, "tokens_seen": 100, "kv_bytes": 2 * 10**9},
]


def plot(points: list[dict[str, Any]]) -> Plot:
    return timeline_plot(record(timeline=points).timeline, KV["budget_bytes"])


def test_the_timeline_is_drawn_from_corner_to_corner_under_its_budget_with_a_dot_per_event() -> None:
    shown = plot(TIMELINE)
    held, budget = shown.curves
    assert [(mark.x, mark.y, mark.dot) for mark in held.marks] == [
        (0, HEIGHT, False),
        (WIDTH / 2, HEIGHT / 2, True),
        (WIDTH, 0, False),
    ]
    assert (budget.name, {mark.y for mark in budget.marks}) == ("budget 2.00 GB", {0})
    assert (shown.x_title, shown.x_ticks[-1][1]) == ("tokens seen", "100")


def test_tokens_that_were_taken_back_count_on_the_timeline() -> None:
    again = [{"t_s": 4.0, "tokens_seen": 60, "kv_bytes": 0}, {"t_s": 5.0, "tokens_seen": 160, "kv_bytes": 0}]
    shown = plot([*TIMELINE, *again])
    assert (shown.x_title, shown.x_ticks[-1][1]) == ("tokens seen, with those taken back", "200")
    assert [mark.x for mark in shown.curves[0].marks] == [0, WIDTH / 4, WIDTH / 2, WIDTH / 2, WIDTH]


def test_the_timeline_of_a_batch_goes_by_time() -> None:
    shown = plot([point | {"tokens_generated": 1} for point in TIMELINE])
    assert shown.x_title == "seconds"


def test_a_budget_that_was_changed_is_drawn_and_told_as_it_was_at_the_time() -> None:
    first, second, third = ({**point, "budget_bytes": 4_000_000_000} for point in TIMELINE)
    changed = third | {"kv_bytes": 1_500_000_000, "budget_bytes": 2_000_000_000, "event": "KV 4 GB → KV 2 GB"}
    shown = record(timeline=[first, second, third, changed])
    _, budget = timeline_plot(shown.timeline, KV["budget_bytes"]).curves
    assert [(mark.x, mark.y) for mark in budget.marks] == [
        (0, 0),
        (WIDTH, 0),
        (WIDTH, HEIGHT / 2),
        (WIDTH, HEIGHT / 2),
    ]
    told = verdict(shown)
    assert told.startswith("Stayed inside each budget, 4.00 GB, then 2.00 GB: peak KV 1.998 GB, reserved")


@pytest.mark.parametrize(("timeline", "num_plots"), [([], 0), (TIMELINE[:1], 1), (TIMELINE, 1)])
def test_the_page_has_a_plot_where_there_is_a_timeline(timeline: list[dict[str, Any]], num_plots: int) -> None:
    page = record_page(record(argv=["chat", "<script>alert(1)</script>"], warnings=["a & b"], timeline=timeline))
    assert page.count("<figure>") == num_plots + 1  # and what each layer kept
    assert "<script" not in page and "a &amp; b" in page


BATCH = [
    point | {"tokens_generated": generated, "rows_used": used, "rows": 4}
    for point, generated, used in zip(TIMELINE, (0, 100, 400), (1, 4, 2), strict=True)
]


def test_a_batch_is_drawn_as_tokens_per_second_and_rows_in_use() -> None:
    rates, rows = batch_plots(record(timeline=BATCH).timeline)
    assert [(mark.x, mark.y) for mark in rates.curves[0].marks] == [(WIDTH / 2, HEIGHT * 2 / 3), (WIDTH, 0)]
    used, there = rows.curves
    assert [mark.y for mark in used.marks] == [HEIGHT * 3 / 4, 0, HEIGHT / 2]
    assert {mark.y for mark in there.marks} == {0}
    assert record_page(record(timeline=BATCH)).count("<figure>") == 4
    assert batch_plots([]) == batch_plots(record(timeline=BATCH[:1]).timeline) == []


def test_the_slowest_answers_of_a_long_batch_are_named() -> None:
    slowest = [{"id": "a", "total_s": 9.5, "prompt_tokens": 3, "completion_tokens": 7, "finish_reason": "stop"}]
    shown = record(batch={"total": MAX_REQUEST_ROWS + 1, "slowest": slowest})
    assert table(shown, "Slowest") == {"a": ("9.50 s", "3", "7", "stop")}
    short = record(batch={"total": 2, "slowest": slowest})
    assert "Slowest" not in {one.columns[0] for one in record_tables(short)}


def test_the_page_of_a_run_that_passed_its_budget_is_an_alarm() -> None:
    assert '<h1 class="alarm">Went over' in record_page(record(kv=KV | {"within_budget": False}))


def test_each_head_is_drawn_where_a_layer_has_few_and_else_the_least_and_the_most() -> None:
    def curves(heads: int) -> list[tuple[str, list[float]]]:
        layers = [{"layer": n, "kept": 20, "heads": [*range(10, 10 + heads)], "bytes": 0} for n in range(2)]
        shown = record(kv=KV | {"per_layer": layers, "tokens_seen": 100, "tokens_evicted": 60}).kv
        assert shown is not None
        plot = next(plot for plot in record_plots(shown, []) if plot.title == "Tokens kept by each KV head")
        return [(curve.name, [mark.y for mark in curve.marks]) for curve in plot.curves]

    assert curves(2) == [("KV head 0", [162.0] * 2), ("KV head 1", [160.2] * 2)]
    assert curves(31) == [("KV head that keeps least", [162.0] * 2), ("KV head that keeps most", [108.0] * 2)]


def test_the_course_of_a_run_is_told_in_little_bars() -> None:
    layers = [
        {"layer": 0, "kept": 55, "heads": [10, 100], "bytes": 0},
        {"layer": 1, "kept": 10, "heads": [10, 10], "bytes": 0},
    ]
    shown = record(kv=KV | {"per_layer": layers, "tokens_seen": 100, "tokens_evicted": 45}, timeline=TIMELINE)
    assert table(shown, "Course") == {
        "KV bytes": ("▁▄█ up to 2.00 GB of 2.00 GB",),
        "kept by layer": ("▅▁ 10 % to 55 %",),
        "kept by KV head": ("▁█▁▁ 10 % to 100 %",),
    }


def test_what_is_kept_of_layers_and_turns_is_drawn_where_something_was_evicted() -> None:
    turns = [{"turn": n, "tokens": 10, "kept": kept, "pinned": n == 2} for n, kept in ((1, 0.004), (2, 0.5), (3, 1.0))]
    shown = record(kv=KV | {"per_turn": turns, "tokens_seen": 100, "tokens_evicted": 60})
    assert shown.kv is not None
    titles = {plot.title: plot for plot in record_plots(shown.kv, [])}
    assert [mark.y for mark in titles["Kept of each turn"].curves[0].marks] == [179.3, 90.0, 0.0]
    assert len(titles["Tokens kept by each layer"].curves[0].marks) == 3
    (table,) = [table for table in record_tables(shown) if table.columns[0] == "Turn"]
    assert [row[2] for row in table.rows] == ["<1 %", "50 %", "100 %"] and table.rows[1][0] == "2, pinned"
    whole = record(kv=KV | {"per_turn": turns, "tokens_evicted": 0})
    assert whole.kv is not None and record_plots(whole.kv, []) == ()
    assert not [table for table in record_tables(whole) if table.columns[0] == "Turn"]
