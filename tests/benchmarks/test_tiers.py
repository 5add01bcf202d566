"""The simulated tiers: what leaves the exact one is rounded once and stays so; shares of all and none are known."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvlite.cache.policy import load_policy
from kvlite.engine.engine import Engine
from kvlite.evaluation.variant import Placed, Variant
from kvlite.memory.budget import Budget
from kvlite.models.loaded import LoadedModel
from tests.engine_for_tests import admitted

IDS = tuple(torch.randint(0, 60, (60,), generator=torch.Generator().manual_seed(0)).tolist())
BUDGET = Budget.parse("6kB")


@pytest.fixture
def tiers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("tiered_slots")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return admitted(LlamaForCausalLM(config).eval())


def tiered(tiers: ModuleType, loaded: LoadedModel, share: str) -> Placed:
    variant = Variant(load_policy("heavy-hitter"), BUDGET)
    return tiers.tiered(variant, Fraction(share), loaded.shape, 6000)  # type: ignore[no-any-return]


@torch.inference_mode()
def fed(engine: Engine, chunk: int) -> torch.Tensor:
    return torch.cat([engine.score([IDS[at : at + chunk]]) for at in range(0, len(IDS), chunk)], 1)


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_token_that_left_the_exact_tier_was_rounded_and_never_returns(
    tiers: ModuleType, loaded: LoadedModel, chunk: int
) -> None:
    engine = tiered(tiers, loaded, "1").open(loaded, 1)  # which all exact tiers leave as it is
    tiered_layers = tiers.Tiers(engine.cache, Fraction("0.4")).layers
    was_coded = [torch.zeros(2, len(IDS), dtype=torch.bool) for _ in tiered_layers]
    for at in range(0, len(IDS), chunk):
        engine.score([IDS[at : at + chunk]])
        for tier, coded in zip(tiered_layers, was_coded, strict=True):
            pos, exact = tier.layer.pos[0, :, :-1], tier.is_exact(slice(0, 1))[0]
            assert (exact.sum(-1) <= tier.num_exact).all()
            for head in range(2):
                assert not coded[head, pos[head, exact[head]].long()].any()
                coded[head, pos[head, (pos[head] >= 0) & ~exact[head]].long()] = True
                rounded = tier.floats.k[0, head, :-1][(pos[head] >= 0) & ~exact[head]]
                torch.testing.assert_close(tiers.as_int4(rounded), rounded, atol=1e-3, rtol=1e-2)
    assert all(coded.any() for coded in was_coded)


def test_with_every_slot_exact_the_tiers_are_bfloat16_slots(tiers: ModuleType, loaded: LoadedModel) -> None:
    variant = Variant(load_policy("heavy-hitter"), BUDGET, "bfloat16")
    plain = variant.place(loaded.shape, 0, 0)
    engine = tiered(tiers, loaded, "1").open(loaded, 1)
    assert engine.plan.slots == plain.plan.slots < len(IDS)
    torch.testing.assert_close(fed(engine, 1), fed(plain.open(loaded, 1), 1))


def test_fewer_exact_slots_hold_more_tokens_inside_the_same_bytes(tiers: ModuleType, loaded: LoadedModel) -> None:
    placed = [tiered(tiers, loaded, share) for share in ("0.1", "0.25", "0.5", "1")]
    slots = [each.plan.slots for each in placed]
    assert slots == sorted(slots, reverse=True) and len(set(slots)) == 4
    assert all(each.plan.reserved_bytes <= 6000 for each in placed)


def test_the_script_compares_all_shares_at_the_same_bytes(
    tiers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--conversations", "1", "--texts", "1", "--length", "150", "--budget", "30", "--exact", "25,50"]
    monkeypatch.setattr(sys, "argv", ["tiers.py"])
    import_module("tiers").main([*arguments, "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    names = ["float32", "int4", "25% exact", "50% exact", "bfloat16", "int8"]
    assert [line["slots_hold"] for line in found] == [*names, *names]
    for _, *compared in (found[:6], found[6:]):
        sizes = [line["reserved_bytes"] for line in compared]
        assert max(sizes) - min(sizes) < 0.02 * max(sizes)
    assert len(capsys.readouterr().out.splitlines()) == len(found) + 1
