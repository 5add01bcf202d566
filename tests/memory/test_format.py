"""Sizes in words and slot formats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.errors import UsageError
from kvlite.memory.format import human_bytes, parse_size, short_size, slot_format


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_998_000_000, "2.00 GB"),
        (67_400_000_000, "67.4 GB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_human_bytes_are_powers_of_ten(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GB", 2 * 10**9), ("2GiB", 2**31), ("1.5 kb", 1500), ("7B", 7), ("0.1B", 0), ("9007199254740993B", 2**53 + 1)],
)
def test_sizes_are_read_to_the_byte(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "2", "GB", "-1GB", "2 G", "2iB", "1e9B", "2GBs", "٢GB", "nan B", "9" * 5000 + "B"]
)
def test_what_is_no_size_is_none(text: str) -> None:
    assert parse_size(text) is None


@given(st.integers(1, 10**15))
def test_round_sizes_bound_the_exact_one_closely(count: int) -> None:
    up, down = parse_size(short_size(count, up=True)), parse_size(short_size(count, up=False))
    assert up is not None
    assert down is not None
    assert count * 0.9 <= down <= count <= up <= count * 1.1


def test_auto_stores_the_models_dtype() -> None:
    assert slot_format("auto", "bfloat16").bytes_per_slot(128, 64) == 384
    assert slot_format("fp32", "bfloat16").bytes_per_slot(128, 64) == 768


@pytest.mark.parametrize("name", ["int3", "INT8", "fp8", "", "FLOAT16"])
def test_an_unknown_format_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(UsageError, match="float32, bfloat16, float16, int8, k6v4, int4"):
        slot_format(name, "bfloat16")


@pytest.mark.parametrize(
    ("name", "k_dim", "v_dim", "size"),
    [
        ("int4", 128, 128, 2 * (64 + 4 * 2)),
        ("int8", 128, 128, 2 * (128 + 4 * 2)),
        ("int4", 192, 128, (96 + 6 * 2) + (64 + 4 * 2)),
        ("int4", 80, 80, 2 * (40 + 5 * 2)),  # the largest power of two in 80 is 16
        ("int8", 8, 8, 2 * (8 + 2)),
        ("int4", 5, 5, 2 * (3 + 5 * 2)),
        ("k6v4", 64, 128, (32 + 16 + 2 * 2) + (64 + 4 * 2)),
        ("k6v4", 5, 6, (3 + 2 + 5 * 2) + (3 + 3 * 2)),
    ],
)
def test_a_coded_slot_is_its_codes_and_a_scale_per_group(name: str, k_dim: int, v_dim: int, size: int) -> None:
    assert slot_format(name, "bfloat16").bytes_per_slot(k_dim, v_dim) == size
