"""From options to an engine: what is refused before weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvlite.catalog.files import local_files, model_facts
from kvlite.catalog.names import demo_folder, resolve_model
from kvlite.errors import DoesNotFit, UsageError
from kvlite.llm import LLM
from kvlite.llm.spec import PlanDevice, RunSpec
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS
from kvlite.memory.shape import ModelShape
from kvlite.models import device, loading
from kvlite.options import ModelOptions
from tests.architectures import tiny_model
from tests.gguf.gguf_file import write_model

SHAPE = ModelShape.from_config(local_files(resolve_model("demo")).config)


def spec(**options: object) -> RunSpec:
    return RunSpec.of(ModelOptions(model="demo", **options))  # type: ignore[arg-type]


def test_the_weights_are_measured_as_they_will_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = local_files(resolve_model("demo")).weights
    assert weights is not None and weights.parameters is not None
    assert weights.num_bytes < 3 * weights.parameters  # stored in two bytes each, computed with in four
    for module in (loading, device):
        monkeypatch.setattr(module, "free_bytes", lambda _: 3 * weights.parameters)
    with pytest.raises(DoesNotFit, match=f"weights take {4 * weights.parameters / 1e6:.2f} MB"):
        LLM("demo", device="cpu")
    with pytest.raises(DoesNotFit, match="KV budget"):  # the weights fit, and leave nothing for the cache
        LLM("demo", device="cpu", dtype="bf16", kv_budget="50MB")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"kv_budget": "1"}, "KV budget '1' is not understood"),
        ({"kv_dtype": "int3"}, "no slot format 'int3'"),
        ({"kv_policy": "nothing"}, "nothing"),
        ({"kv_policy": "full", "on_full": "evict"}, "contradicts"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
    ],
)
def test_words_are_refused_before_any_file_is_looked_for(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LLM("org/nowhere", offline=True, **options)


def test_words_become_values() -> None:
    found = spec(kv_budget="2MB", kv_per_seq="64tok", kv_dtype="bf16", dtype="fp16", kv_policy="full", device="cpu")
    assert found.budget == Budget(BudgetKind.BYTES, 2_000_000)
    assert found.row_budget == Budget(BudgetKind.TOKENS, 64)
    assert (found.stored, found.dtype) == (FORMATS["bfloat16"], "float16")
    assert (found.policy.name, found.on_full) == ("full", "stop")
    assert [spec(speculate=word).speculate for word in ("auto", "off", "7")] == ["auto", "off", 7]


def test_what_is_left_open_follows_from_the_model() -> None:
    found = spec()
    assert (found.stored, found.dtype, found.row_budget) == (None, None, None)
    assert found.cache(SHAPE).slot_format == FORMATS[SHAPE.dtype]


@pytest.mark.parametrize("policy", ["heavy-hitter", "h2o", "full"])
def test_a_budget_buys_the_same_whatever_the_kernels(policy: str) -> None:
    files = local_files(resolve_model("demo"))
    torch, triton = (
        found.fit(files, PlanDevice("cuda", "a GPU", 10**9)).cache(found.budget)
        for found in (spec(kv_policy=policy, kernels=kernels, kv_budget="300kB") for kernels in ("torch", "triton"))
    )
    assert torch == triton


def test_weights_that_are_quantised_already_are_not_planned_in_other_bits(tmp_path: Path) -> None:
    config = json.loads((demo_folder() / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ModelOptions(model=str(tmp_path), quant="4bit")
    spec = RunSpec.of(options)
    with pytest.raises(UsageError, match=r"is quantised already \(fp8\); leave out --quant 4bit"):
        spec.fit(model_facts(spec.ref), PlanDevice("cpu", "here", 10**9))


def test_nothing_stays_packed_where_an_adapter_is_merged(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", tiny_model("llama", {}, vocab_size=320, intermediate_size=128), "Q4_0")
    facts = model_facts(resolve_model(str(path)))
    plain, merged = (RunSpec.of(ModelOptions(model=str(path), adapter=one)) for one in (None, str(tmp_path)))
    place = PlanDevice("cpu", "here", 10**9)
    assert (plain.fit(facts, place).held_in, merged.fit(facts, place).held_in) == ("Q4_0", "bfloat16")
