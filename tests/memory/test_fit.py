"""Quotes, searches and advice about a model on a device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.memory.budget import Budget
from kvlite.memory.fit import Fit, advice, quote
from kvlite.memory.format import FORMATS
from kvlite.memory.plan import CacheSpec
from kvlite.memory.prediction import Weights
from kvlite.memory.shape import ModelShape

CONFIG = json.loads((Path(__file__).parents[1] / "data" / "configs" / "llama-3.1-8b.json").read_text())
PARAMETERS = 8_030_261_248
LLAMA = Fit(
    shape=ModelShape.from_config(CONFIG),
    spec=CacheSpec(FORMATS["bfloat16"], state_bytes_per_slot=4, protected_slots=9),
    weights=Weights(2 * PARAMETERS, PARAMETERS),
    quant="none",
    device="cuda",
    free_bytes=24 * 10**9,
)


def test_the_cache_terms_add_up_to_what_is_reserved() -> None:
    found = quote(LLAMA, Budget.parse("2GB"))
    terms = found.memory.predicted()
    assert found.cache is not None
    cache = ("kv", "policy_state", "positions", "staging", "constant_state")
    assert sum(terms[name] for name in cache) == found.cache.reserved_bytes
    assert sum(terms.values()) == found.memory.total_bytes
    assert list(terms) == ["weights", *cache, "activations", "scratch", "cuda_context"]


def test_weights_are_counted_in_the_dtype_they_run_in() -> None:
    assert quote(LLAMA, Budget.parse("2GB")).memory.predicted()["weights"] == 2 * PARAMETERS
    wide = replace(LLAMA, shape=ModelShape.from_config(CONFIG, dtype="float32"))
    assert quote(wide, Budget.parse("2GB")).memory.predicted()["weights"] == 4 * PARAMETERS


@pytest.mark.parametrize(("quant", "rate"), [("8bit", 1.0), ("4bit", 0.516), ("nf4", 0.5625), ("fp4", 0.5625)])
def test_quantised_weights_leave_embedding_and_head_in_sixteen_bits(quant: str, rate: float) -> None:
    kept = 2 * 128_256 * 4096
    weights = quote(replace(LLAMA, quant=quant), Budget.parse("2GB")).memory.predicted()["weights"]
    assert weights == 2 * kept + int((PARAMETERS - kept) * rate)


@pytest.mark.parametrize(("quant", "rate"), [("8bit", 1.0), ("4bit", 0.625)])
def test_on_a_cpu_embedding_and_head_are_packed_in_eight_bits(quant: str, rate: float) -> None:
    kept = 2 * 128_256 * 4096
    on_cpu = replace(LLAMA, quant=quant, device="cpu")
    weights = quote(on_cpu, Budget.parse("2GB")).memory.predicted()["weights"]
    assert weights == kept + 2 * 2 * 128_256 + int((PARAMETERS - kept) * rate)


def test_unknown_weights_are_said_to_be_unknown_and_count_nothing() -> None:
    found = quote(replace(LLAMA, weights=None), Budget.parse("2GB"))
    assert found.memory.terms[0].predicted_bytes is None
    assert "weights" not in found.memory.predicted()
    assert found.fits


@given(st.integers(10**8, 10**11), st.integers(1, 10**11), st.integers(1, 16))
def test_what_fits_is_inside_the_device(free: int, size: int, rows: int) -> None:
    found = quote(replace(LLAMA, free_bytes=free, batch=rows), Budget.parse(f"{size}B"))
    if found.fits:
        assert found.memory.total_bytes <= free


@pytest.mark.parametrize("free_gb", [1, 5, 8, 12, 16, 17, 20])
@pytest.mark.parametrize("budget", ["auto", "full", "1MB", "4GB", "50000tok", "30GB"])
@pytest.mark.parametrize("rows", [1, 8])
def test_each_advised_change_makes_it_fit(free_gb: int, budget: str, rows: int) -> None:
    fit = replace(LLAMA, free_bytes=free_gb * 10**9, batch=rows)
    found = quote(fit, Budget.parse(budget))
    changes = advice(found)
    assert bool(changes) != found.fits
    for change in changes:
        words = change.split()
        flags = dict(zip(words[::2], words[1::2], strict=False))
        changed = replace(fit, quant=flags.get("--quant", "none"), batch=int(flags.get("--batch-size", rows)))
        if change.startswith("--"):
            assert quote(changed, Budget.parse(flags.get("--kv-budget", budget))).fits, change


def test_a_gguf_file_that_fits_a_gpu_only_in_its_blocks_is_advised_to_keep_them() -> None:
    size = PARAMETERS * 18 // 32
    of_file = Weights(size, PARAMETERS, {"Q4_0": size}, packed_types=("Q4_0",), block_bytes=size)
    fit = replace(LLAMA, weights=of_file, free_bytes=10 * 10**9)
    assert advice(quote(fit, Budget.parse("1GB")))[0] == "--kernels triton"
    assert quote(replace(fit, kernels="triton"), Budget.parse("1GB")).memory.predicted()["weights"] == size
    on_cpu = replace(fit, device="cpu")
    assert "--kernels triton" not in advice(quote(on_cpu, Budget.parse("1GB")))


def test_weights_alone_too_large_are_told_apart_from_the_budget() -> None:
    found = quote(replace(LLAMA, free_bytes=8 * 10**9), Budget.parse("1GB"))
    assert found.cache is None
    assert "beside the cache" in (found.shortage or "")


def test_a_budget_that_the_device_cannot_give_does_not_fit_even_if_it_would_not_all_be_used() -> None:
    found = quote(replace(LLAMA, weights=None), Budget.parse("30GB"))
    assert found.cache is not None
    assert found.cache.reserved_bytes < 24 * 10**9
    assert not found.fits


def test_a_model_with_state_runs_one_row() -> None:
    config = json.loads((Path(__file__).parents[1] / "data" / "configs" / "lfm2-1.2b.json").read_text())
    fit = replace(LLAMA, shape=ModelShape.from_config(config), weights=None)
    assert replace(fit, batch=8).most_rows == 1


def test_so_many_rows_that_their_logits_do_not_fit_are_advised_against() -> None:
    fit = replace(LLAMA, free_bytes=20 * 10**9, batch=2**16)
    (change,) = [text for text in advice(quote(fit, Budget.parse("1GB"))) if text.startswith("--batch-size")]
    assert quote(replace(fit, batch=int(change.split()[1])), Budget.parse("1GB")).fits


def test_a_row_grows_where_the_host_has_memory_for_its_copy() -> None:
    needs = [[3.0 ** (head % 3) for head in range(layer.kv_heads)] for layer in LLAMA.shape.layers]
    spec = replace(LLAMA.spec, head_shares=lambda slots: needs)
    fit = replace(LLAMA, spec=spec, device="cpu", batch=None, is_loaded=True)
    budget = Budget.parse("2GB")
    for free, grows in ((3 * 10**9, False), (9 * 10**9, True)):
        found = replace(fit, free_bytes=free).cache(budget)
        assert (found.then is not None) == grows
        assert (len({slots for heads in found.head_slots for slots in heads}) > 1) != grows
