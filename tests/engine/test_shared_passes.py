"""Rows that decode share the pass of another's chunk: no answer changes, and none stalls."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from kvlite.engine.engine import Engine
from kvlite.engine.request import Request, Sampling, Token
from kvlite.engine.row import Row
from kvlite.models.loaded import LoadedModel
from tests.architectures import REPRESENTATIVES, SUPPORTED, is_here, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine
from tests.matrix import but_few


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple((seed * 31 + i * 7) % 90 + 3 for i in range(length))


def requests(*lengths: int, most: int = 4) -> list[Request]:
    return [
        Request(str(n), prompt(n, length), Sampling(temperature=0.9 * (n % 2), seed=n), most + 3 * n, logprobs=2)
        for n, length in enumerate(lengths)
    ]


def never_shares(row: Row, count: int) -> bool:
    return False


class Passes:
    """The passes of an engine: of each, the tokens that each step fed."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fed: list[tuple[tuple[int, ...], ...]] = []
        loaded = type(engine.loaded)
        alone, packed = loaded.forward, loaded.forward_packed

        def forward(held: LoadedModel, ids: Any, cache: Any, step: Any, last: int = 1) -> torch.Tensor:
            self.fed.append((step.counts,))
            return alone(held, ids, cache, step, last)

        def forward_packed(held: LoadedModel, pieces: Any, cache: Any) -> torch.Tensor:
            self.fed.append(tuple(step.counts for _, step in pieces))
            return packed(held, pieces, cache)

        monkeypatch.setattr(loaded, "forward", forward)
        monkeypatch.setattr(loaded, "forward_packed", forward_packed)


def assert_same_in_turns(make: Any, asked: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare an engine whose rows share passes with one whose rows take turns."""
    engine = make()
    passes = Passes(engine, monkeypatch)
    shared = answers(engine, asked)
    assert any(len(steps) > 1 for steps in passes.fed)
    engine = make()
    monkeypatch.setattr(engine.rows.feeder, "may_share", never_shares)
    taking_turns = answers(engine, asked)
    for name, one in shared.items():
        other = taking_turns[name]
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason), name
        assert one.kv == other.kv
        assert [known.chosen for known in one.logprobs] == pytest.approx(
            [known.chosen for known in other.logprobs], abs=1e-5
        )


@pytest.mark.parametrize("policy", but_few(["replay", "heavy-hitter", "h2o", "window", "full"], "replay", "window"))
def test_answers_are_those_of_rows_that_take_turns(
    llama: LoadedModel, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(3, 20, 5, 40, 9, 33, 2)
    assert_same_in_turns(lambda: make_engine(llama, "64tok", policy, rows=3), asked, monkeypatch)


@pytest.mark.parametrize("kv_dtype", ["int8", "k6v4", "int4"])
def test_so_they_are_over_low_bit_slots(kv_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = admitted(tiny_model("llama", {}))
    loaded.model.double()  # in fp32, the last bit may round a number to the next code
    asked = requests(3, 20, 5, 40, 9)
    assert_same_in_turns(lambda: make_engine(loaded, "64tok", rows=3, kv_dtype=kv_dtype), asked, monkeypatch)


@pytest.mark.parametrize("family", but_few(SUPPORTED, *REPRESENTATIVES))
def test_so_they_are_in_every_architecture(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_here(family):
        pytest.skip(f"{family} is not in the transformers installed")
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    if loaded.state is not None:
        pytest.skip(f"{family} carries state: its rows go one by one")
    asked = requests(3, 8, 5, 7, most=2)  # inside the smallest sliding window
    assert_same_in_turns(lambda: make_engine(loaded, "48tok", rows=2), asked, monkeypatch)


def test_no_answer_stalls_while_the_prompts_of_all_other_rows_are_fed(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama, "64tok", rows=4)
    passes = Passes(engine, monkeypatch)
    first, *others = requests(2, 40, 40, 40, most=20)
    events = engine.run(_late(first, others, engine))
    tokens = [event.request_id for event in events if isinstance(event, Token)]
    while_prompts = [steps for steps in passes.fed[1:] if max(steps[0]) > 1]
    assert while_prompts
    assert all(1 in steps[-1] for steps in while_prompts)
    assert tokens.count("0") == 20


def _late(first: Request, others: list[Request], engine: Engine) -> Any:
    """The first request, and the others once it has begun to answer."""
    yield first
    while not any(row.job is not None and row.job.answer for row in engine.rows):
        yield None
    yield from others


def test_where_tokens_are_evicted_rows_take_turns(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(llama, "24tok", "window", rows=3)
    passes = Passes(engine, monkeypatch)
    first, *others = requests(2, 60, 60, most=20)
    for _ in engine.run(_late(first, others, engine)):
        pass
    is_chunk_alone = [len(steps) == 1 and max(steps[0]) > 1 for steps in passes.fed]
    assert sum(is_chunk_alone) > 4
    assert not any(chunk and then for chunk, then in pairwise(is_chunk_alone))
