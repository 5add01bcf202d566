"""Comparisons over a record: what can be written, what it means, and that a missing number never passes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from kvlite.errors import UsageError
from kvlite.record.fail_on import difference_table, judge, numbers_of
from kvlite.record.schema import RunRecord

NOW = datetime(2025, 11, 20, tzinfo=UTC)


def record(**fields: Any) -> RunRecord:
    basis = {"run_id": "a", "command": "run", "started": NOW, "ended": NOW, "exit_code": 0}
    return RunRecord.model_validate(basis | fields)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("peak_kv_bytes=={}6.5GB", "peak_kv_bytes", 6_500_000_000),
        ("peak_kv_bytes == {}6GiB", "peak_kv_bytes", 6 * 2**30),
        ("peak_kv_bytes=={}6500000000", "peak_kv_bytes", 6_500_000_000),
        ("change.kv.peak_bytes=={}1.5kB", "change.kv.peak_bytes", 1500),
        ("kv.bytes_per_token=={}512KiB", "kv.bytes_per_token", 524_288),
        ("ttft_s=={}0.4s", "ttft_s", 0.4),
        ("kv.tokens_evicted=={}0", "kv.tokens_evicted", 0),
    ],
)
def test_values_are_sizes_seconds_or_bare_numbers(text: str, field: str, value: float) -> None:
    assert judge(text.format(""), {field: value}) is not None
    assert judge(text.format("-"), {field: -value}) is not None
    assert judge(text.format(""), {field: value + 1}) is None


@pytest.mark.parametrize(
    "text",
    ["", "kv.peak_bytes", ">1", "a>", "a=1", "a>b", "a>nan", "a>1e9", "a>1 and b>2", "a>>1", "peak_kv_bytes>1XB",
     "peak_kv_bytes>50%", "kv.tokens_seen>1GB", "kv.tokens_seen>1s", "__import__('os')>1", "a>1" + "0" * 30],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-on"):
        judge(text, {"a": 1, "peak_kv_bytes": 1, "kv.tokens_seen": 1})


@pytest.mark.parametrize(
    ("sign", "true_of"), [(">", [3]), (">=", [2, 3]), ("<", [1]), ("<=", [1, 2]), ("==", [2]), ("!=", [1, 3])]
)
def test_signs_mean_what_they_say(sign: str, true_of: list[int]) -> None:
    assert [n for n in (1, 2, 3) if judge(f"n{sign}2", {"n": n})] == true_of


def test_a_gate_that_fails_says_the_value() -> None:
    said = judge(" peak_kv_bytes>2GB", {"peak_kv_bytes": 2_500_000_000})
    assert said == "peak_kv_bytes is 2.50 GB, fails on peak_kv_bytes>2GB"


def test_a_number_that_was_not_measured_is_refused_and_the_measured_ones_listed() -> None:
    with pytest.raises(UsageError, match=r"'peak_vram_bytes' was not measured in this run; it has .*exit_code"):
        judge("peak_vram_bytes>1GB", numbers_of(record()))


def test_numbers_have_dotted_names_and_claims_are_0_or_1() -> None:
    kv = {
        "budget_bytes": 5, "policy": "full", "dtype": "float32", "reserved_bytes": 5, "live_bytes": 4, "peak_bytes": 4,
        "tokens_seen": 1, "tokens_kept": 1, "tokens_evicted": 0, "allocated_unused_bytes": 1, "within_budget": True,
    }  # fmt: skip
    memory = {
        "terms": [{"name": "policy state", "predicted_bytes": 7}],
        "phases": [{"name": "load", "peak_bytes": 9}],
        "torch": {"allocated_peak_bytes": 2, "reserved_peak_bytes": 3},
    }
    requests = [{"id": "a", "ttft_s": 0.5, "tok_s": 4.0}, {"id": "b", "ttft_s": 0.7}, {"id": "c", "tok_s": 2.0}]
    numbers = numbers_of(record(kv=kv, memory=memory, requests=requests, requests_left_out=2))
    expected = {
        "peak_kv_bytes": 4,
        "peak_vram_bytes": 3,
        "kv.within_budget": 1,
        "memory.policy_state.predicted_bytes": 7,
        "phase.load.peak_bytes": 9,
        "ttft_s": 0.7,
        "tok_s": 3.0,
        "num_requests": 5,
    }
    assert expected.items() <= numbers.items()
    assert "memory.policy_state.measured_bytes" not in numbers
    assert "kv.policy" not in numbers


def test_changes_are_the_second_run_minus_the_first_where_both_measured() -> None:
    first = record(exit_code=4, memory={"host_rss_peak_bytes": 1000})
    numbers = numbers_of(first, record(exit_code=1))
    assert numbers.items() >= numbers_of(first).items()
    assert numbers["change.exit_code"] == -3
    assert "change.peak_rss_bytes" not in numbers


def test_equal_runs_differ_in_nothing() -> None:
    table = difference_table(record(), record(run_id="b"))
    assert (table.rows, table.note) == ((), "nothing differs")


def test_a_difference_shows_both_values_and_the_change() -> None:
    first = record(memory={"host_rss_peak_bytes": 1000}, host={"device": "cpu"})
    second = record(memory={"host_rss_peak_bytes": 1500}, host={"device": "cuda"}, exit_code=4)
    rows = difference_table(first, second).rows
    assert ("peak_rss_bytes", "1.00 kB", "1.50 kB", "+500 B (+50.0 %)") in rows
    assert ("host.device", "cpu", "cuda", "") in rows
    assert ("exit_code", "0", "4", "+4") in rows
    assert not {"run_id", "started"} & {name for name, *_ in rows}
