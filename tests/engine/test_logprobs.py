"""Log probabilities are the model's own, whatever shapes the draw, and of the rows that ask for them."""

from __future__ import annotations

import pytest
import torch

from kvlite.engine.logprobs import logprobs
from kvlite.engine.request import Request, Sampling, TokenRules
from tests.architectures import tiny_model
from tests.engine_for_tests import admitted, answers, feed, make_engine

PROMPT = tuple(range(5, 45))
SHAPED = Sampling(temperature=2.0, top_p=0.9, repetition_penalty=1.5, presence_penalty=1.0, logit_bias=((7, 9.0),))


def test_they_are_those_of_the_whole_text_read_at_once() -> None:
    loaded = admitted(tiny_model("llama", {}))
    rules = TokenRules(suppress_tokens=(8,))
    asked = [
        Request("shaped", PROMPT, SHAPED, max_tokens=8, rules=rules, logprobs=3),
        Request("own", PROMPT, Sampling(temperature=1.0), max_tokens=8, logprobs=0),
        Request("none", PROMPT, max_tokens=8),
    ]
    found = answers(make_engine(loaded, "192tok", rows=3), asked)
    assert found["none"].logprobs == ()
    for name, count in (("shaped", 3), ("own", 0)):
        ids = found[name].ids
        logits = feed(loaded, make_engine(loaded).cache, [*PROMPT, *ids], [48])[len(PROMPT) - 1 : -1]
        known = found[name].logprobs
        expected = logits.float().log_softmax(-1)
        chosen = expected.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        assert [one.chosen for one in known] == pytest.approx(chosen.tolist(), abs=1e-4)
        top = expected.topk(3, dim=-1)
        for one, values in zip(known, top.values.tolist(), strict=True):
            assert [value for _, value in one.likeliest] == pytest.approx(values[:count], abs=1e-4)


def test_a_short_vocabulary_and_what_is_impossible_are_no_errors() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 1.0], [0.0, 0.0, 0.0]])
    first, second = logprobs(logits, [0, 2], [20, None])
    assert second is None and first is not None
    assert [token for token, _ in first.likeliest][2] == 1 and first.likeliest[2][1] == -torch.inf
    assert first.chosen == pytest.approx(-0.6931, abs=1e-4)
