"""Verdicts, searches and advice about a model on a device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.memory.budget import Budget
from kvlite.memory.format import FORMATS
from kvlite.memory.plan import CacheSpec
from kvlite.memory.prediction import WeightFacts
from kvlite.memory.scenario import Scenario, advice, ask, most_rows, most_tokens, sweep
from kvlite.memory.shape import ModelShape

CONFIG = json.loads((Path(__file__).parents[1] / "data" / "configs" / "llama-3.1-8b.json").read_text())
PARAMETERS = 8_030_261_248
LLAMA = Scenario(
    shape=ModelShape.from_config(CONFIG),
    spec=CacheSpec(FORMATS["bfloat16"], state_bytes_per_slot=4, protected_slots=9),
    weights=WeightFacts(2 * PARAMETERS, PARAMETERS, is_tied=False, is_quantised=False),
    quant="none",
    device="cuda",
    free_bytes=24 * 10**9,
)


def test_the_cache_terms_add_up_to_what_is_reserved() -> None:
    answer = ask(LLAMA, Budget.parse("2GB"))
    terms = answer.memory.predicted()
    assert answer.cache is not None
    cache = ("kv", "policy_state", "positions", "staging", "constant_state")
    assert sum(terms[name] for name in cache) == answer.cache.reserved_bytes
    assert sum(terms.values()) == answer.memory.total_bytes
    assert list(terms) == ["weights", *cache, "activations", "scratch", "cuda_context"]


def test_weights_are_counted_in_the_dtype_they_run_in() -> None:
    assert ask(LLAMA, Budget.parse("2GB")).memory.predicted()["weights"] == 2 * PARAMETERS
    wide = replace(LLAMA, shape=ModelShape.from_config(CONFIG, dtype="float32"))
    assert ask(wide, Budget.parse("2GB")).memory.predicted()["weights"] == 4 * PARAMETERS


@pytest.mark.parametrize(("quant", "rate"), [("8bit", 1.0), ("4bit", 0.516), ("nf4", 0.5625), ("fp4", 0.5625)])
def test_quantised_weights_leave_embedding_and_head_in_sixteen_bits(quant: str, rate: float) -> None:
    kept = 2 * 128_256 * 4096
    weights = ask(replace(LLAMA, quant=quant), Budget.parse("2GB")).memory.predicted()["weights"]
    assert weights == 2 * kept + int((PARAMETERS - kept) * rate)


def test_unknown_weights_are_said_to_be_unknown_and_count_nothing() -> None:
    answer = ask(replace(LLAMA, weights=None), Budget.parse("2GB"))
    assert answer.memory.terms[0].predicted_bytes is None
    assert "weights" not in answer.memory.predicted()
    assert answer.fits


@given(st.integers(10**8, 10**11), st.integers(1, 10**11), st.integers(1, 16))
def test_what_fits_is_inside_the_device(free: int, size: int, rows: int) -> None:
    answer = ask(replace(LLAMA, free_bytes=free).with_rows(rows), Budget.parse(f"{size}B"))
    if answer.fits:
        assert answer.memory.total_bytes <= free


@pytest.mark.parametrize("free_gb", [1, 5, 8, 12, 16, 17, 20])
@pytest.mark.parametrize("budget", ["auto", "full", "1MB", "4GB", "50000tok", "30GB"])
@pytest.mark.parametrize("rows", [1, 8])
def test_each_advised_change_makes_it_fit(free_gb: int, budget: str, rows: int) -> None:
    scenario = replace(LLAMA, free_bytes=free_gb * 10**9).with_rows(rows)
    answer = ask(scenario, Budget.parse(budget))
    changes = advice(answer)
    assert bool(changes) != answer.fits
    for change in changes:
        words = change.split()
        flags = dict(zip(words[::2], words[1::2], strict=False))
        changed = replace(scenario, quant=flags.get("--quant", "none")).with_rows(int(flags.get("--batch-size", rows)))
        if change.startswith("--"):
            assert ask(changed, Budget.parse(flags.get("--kv-budget", budget))).fits, change


def test_weights_alone_too_large_are_told_apart_from_the_budget() -> None:
    answer = ask(replace(LLAMA, free_bytes=8 * 10**9), Budget.parse("1GB"))
    assert answer.cache is None
    assert "beside the cache" in (answer.shortage or "")


def test_a_budget_that_the_device_cannot_give_does_not_fit_even_if_it_would_not_all_be_used() -> None:
    answer = ask(replace(LLAMA, weights=None), Budget.parse("30GB"))
    assert answer.cache is not None
    assert answer.cache.reserved_bytes < 24 * 10**9
    assert not answer.fits


@pytest.mark.parametrize("budget", ["4GB", "8000tok", "auto"])
def test_one_row_more_than_the_most_does_not_keep_as_many_tokens(budget: str) -> None:
    wanted = Budget.parse(budget)
    rows = most_rows(LLAMA, wanted, 1000)
    assert rows > 1
    for count, holds in ((rows, True), (rows + 1, False)):
        answer = ask(LLAMA.with_rows(count, Budget.parse("1000tok")), wanted)
        assert (answer.fits and answer.cache is not None and answer.cache.rows == count) is holds


def test_a_model_with_state_runs_one_row() -> None:
    config = json.loads((Path(__file__).parents[1] / "data" / "configs" / "lfm2-1.2b.json").read_text())
    scenario = replace(LLAMA, shape=ModelShape.from_config(config), weights=None)
    assert most_rows(scenario, Budget.parse("4GB"), 10) == scenario.with_rows(8).most_rows == 1


def test_so_many_rows_that_their_logits_do_not_fit_are_advised_against() -> None:
    scenario = replace(LLAMA, free_bytes=20 * 10**9).with_rows(2**16)
    (change,) = [text for text in advice(ask(scenario, Budget.parse("1GB"))) if text.startswith("--batch-size")]
    assert ask(scenario.with_rows(int(change.split()[1])), Budget.parse("1GB")).fits


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_of_one_token_more_than_the_most_are_fewer(rows: int) -> None:
    budget, scenario = Budget.parse("1GB"), LLAMA.with_rows(rows)
    tokens = most_tokens(scenario, budget)
    for count, holds in ((tokens, True), (tokens + 1, False)):
        answer = ask(scenario.with_rows(rows, Budget.parse(f"{count}tok")), budget)
        assert (answer.cache is not None and answer.cache.rows == rows) is holds


def facts(config: dict[str, Any], weight_bytes: int | None = 4000) -> SimpleNamespace:
    return SimpleNamespace(config=config, weight_bytes=weight_bytes, parameters=2000)


def test_whether_embedding_and_head_are_one_stands_in_the_text_model_or_beside_it() -> None:
    for config, is_tied in (
        ({}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": False, "text_config": {}}, False),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
    ):
        found = WeightFacts.of(facts(config))
        assert found is not None
        assert found.is_tied is is_tied
    assert WeightFacts.of(facts({}, weight_bytes=None)) is None


def test_a_sweep_ends_with_the_whole_window() -> None:
    answers = list(sweep(LLAMA))
    kept = [answer.cache.slots if answer.cache else 0 for answer in answers]
    assert kept == sorted(kept)
    assert kept[-1] == 114_688
    assert [answer.fits for answer in answers] == [True] * 6 + [False] * 2
