"""Rows whose tokens a guide allows: held to whatever else is asked for, ended where it ends, told each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kvlite.engine.request import Completion, FinishReason, Request, Sampling, TokenRules
from kvlite.engine.sampling import Draw, sample
from kvlite.errors import KvliteError, UsageError
from kvlite.models.loaded import LoadedModel
from tests.architectures import tiny_model
from tests.engine_for_tests import admitted, answers, make_engine

STOP = 2
PROMPT = tuple(range(5, 45))


def bits(ids: Sequence[int]) -> bytes:
    mask = bytearray(max(ids) // 8 + 1)
    for token in ids:
        mask[token >> 3] |= 1 << (token & 7)
    return bytes(mask)


class Steps:
    """A guide that allows the ids of one step after the other and is over behind the last."""

    def __init__(self, *steps: Sequence[int], fails_at: int | None = None) -> None:
        self._steps, self._fails_at = steps, fails_at
        self.told: list[int] = []

    @property
    def is_over(self) -> bool:
        return len(self.told) == len(self._steps)

    @property
    def error(self) -> KvliteError | None:
        return UsageError("too complex") if len(self.told) == self._fails_at else None

    def mask(self) -> bytes | None:
        return bits([STOP] if self.error else self._steps[len(self.told)])

    def accept(self, token: int) -> None:
        self.told.append(token)


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


def asked(name: str, *steps: Sequence[int], **changes: Any) -> Request:
    return Request(
        name, PROMPT, stop_ids=frozenset({STOP}), **{"max_tokens": 9, "guide": lambda: Steps(*steps)} | changes
    )


def test_an_answer_ends_where_its_guide_does(llama: LoadedModel) -> None:
    engine = make_engine(llama, "64tok", rows=3)
    found = answers(
        engine,
        [
            asked("over", [7], [8, 9], [10]),
            asked("stop id", [7], [STOP]),
            asked("cut", *[[7, 8]] * 20),
            asked("both", [7], [8], max_tokens=2),
            asked("free", guide=None),
        ],
    )
    assert found["over"].ids[::2] == (7, 10) and found["over"].finish_reason is FinishReason.STOP
    assert (found["stop id"].ids, found["stop id"].finish_reason) == ((7,), FinishReason.STOP)
    assert (len(found["cut"].ids), found["cut"].finish_reason) == (9, FinishReason.LENGTH)
    assert (found["both"].ids, found["both"].finish_reason) == ((7, 8), FinishReason.STOP)
    assert found["free"].error is None


@pytest.mark.parametrize("budget", ["64tok", "16tok"])  # without eviction, and with
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_neighbours_guide_changes_no_answer(llama: LoadedModel, budget: str, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=3)
    free = Request("free", PROMPT, sampling, max_tokens=12)
    guided = asked("guided", *[range(3, 60, 2)] * 12, sampling=sampling, max_tokens=12)
    together = answers(make_engine(llama, budget, rows=2), [free, guided])
    for request in (free, guided):
        assert answers(make_engine(llama, budget), [request])[request.id].ids == together[request.id].ids
    assert all(token % 2 for token in together["guided"].ids)


def test_a_guide_that_fails_fails_its_answer_alone(llama: LoadedModel) -> None:
    broken = asked("broken", guide=lambda: Steps([7], [8], [9], fails_at=1))
    found: dict[str, Completion] = answers(make_engine(llama, "64tok", rows=2), [broken, asked("whole", [7], [8])])
    assert isinstance(found["broken"].error, UsageError)
    assert found["whole"].error is None and found["whole"].ids == (7, 8)


def test_masks_hold_beside_penalties_biases_and_rules() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    biased = Sampling(logit_bias=((3, 100.0), (4, 100.0)), presence_penalty=2.0, frequency_penalty=2.0)
    rules = TokenRules(suppress_tokens=(6,), min_new_tokens=5)
    rows = [
        Draw(biased, 0, (), mask=bits([4, 5])),
        Draw(Sampling(), 0, (), rules, stop_ids=frozenset({STOP}), mask=bits([6, 7])),
        Draw(Sampling(), 0, (), rules, stop_ids=frozenset({STOP}), mask=bits([STOP])),  # the rules leave nothing
        Draw(Sampling(repetition_penalty=1.3), 0, {1, 2}),
    ]
    assert sample(logits, rows)[:3] == [4, 7, STOP]
    assert sample(logits, rows)[3] == sample(logits[3:], rows[3:])[0]


def test_draws_stay_inside_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.zeros(200, 1000)
    hot = [Draw(Sampling(temperature=50.0, seed=seed), 0, (), mask=bits([1, 8, 15])) for seed in range(200)]
    assert {*sample(logits, hot)} == {1, 8, 15}
    monkeypatch.setattr("kvlite.engine.sampling.uniform", lambda seed, index: 1.0)
    assert {*sample(logits, hot)} <= {1, 8, 15}
