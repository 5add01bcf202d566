"""Forced text: the full cache is what the model itself computes, and a bounded one with room for all equals it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvlite.evaluation.journal import Scored
from kvlite.evaluation.scoring import score_texts
from kvlite.evaluation.suites import ForcedText
from tests.engine_for_tests import admitted, make_engine

IDS = tuple(int(token) for token in torch.randint(0, 60, (90,), generator=torch.Generator().manual_seed(0)))
TEXTS = [(0, ForcedText(IDS)), (1, ForcedText(IDS[:41]))]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def test_the_full_cache_scores_what_the_model_computes(model: LlamaForCausalLM) -> None:
    for result, (_, text) in zip(full_scores(model), TEXTS, strict=True):
        ids = torch.tensor([text.ids])
        expected = float(model(input_ids=ids, labels=ids, attn_implementation="eager").loss) * (len(text.ids) - 1)
        assert sum(span.nll for span in result.spans) == pytest.approx(expected, rel=1e-4)
        assert sum(span.tokens for span in result.spans) == len(text.ids) - 1


def full_scores(model: LlamaForCausalLM) -> list[Scored]:
    full = make_engine(admitted(model), "120tok", "full", rows=2)
    found = score_texts(full, None, TEXTS)
    model.set_attn_implementation("eager")
    return found


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize(("budget", "differs"), [("96tok", False), ("32tok", True)])
def test_a_bounded_cache_differs_only_where_it_evicts(
    model: LlamaForCausalLM, chunk: int, budget: str, differs: bool
) -> None:
    loaded = admitted(model)
    full = make_engine(loaded, "120tok", "full", rows=2)
    bounded = make_engine(loaded, budget, "window", rows=2, chunk_limit=chunk)
    for result in score_texts(bounded, full, TEXTS):
        kl = sum(span.kl for span in result.spans)
        assert (kl > 1e-5) == differs
        assert sum(span.nll for span in result.spans) > 0
