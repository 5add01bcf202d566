"""Prompts that are fed a second time before any of them is evicted: what that leaves behind, and what it does not."""

from __future__ import annotations

import pytest
import torch

from kvlite.cache.step import Step
from kvlite.engine.engine import Engine
from kvlite.engine.request import Request
from kvlite.models.head_needs import read_twice
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import probe_ids
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return admitted(tiny_model("llama", SUPPORTED["llama"]))


def prompt(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(2, 128, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def held(engine: Engine, row: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Positions in order and the statistic of each, by part."""
    found = []
    for part in engine.cache.parts:
        live = engine.cache.live(row, part.num_slots)
        pos, order = part.slots.pos[row, :, :live].sort(-1)
        assert part.slots.statistic is not None
        found.append((pos, part.slots.statistic[row, :, :live].gather(-1, order)))
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek_v3", "gpt_oss", "gemma3n_text"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_while_there_is_room_answers_are_those_of_the_full_cache(family: str, kv_dtype: str) -> None:
    model = admitted(tiny_model(family, SUPPORTED[family]))
    request = Request("a", prompt(50), max_tokens=12)
    full, again = (
        answers(make_engine(model, "128tok", policy, kv_dtype=kv_dtype), [request])["a"]
        for policy in ("full", "replay")
    )
    assert again.ids == full.ids and again.kv.tokens_seen == full.kv.tokens_seen


def test_what_is_repeated_leaves_no_key_and_is_known_by_its_repetition(loaded: LoadedModel) -> None:
    ids = probe_ids(loaded, 40)[0].tolist()
    engine = make_engine(loaded, "256tok", "replay")
    engine.score([tuple(ids)])
    expected = summed(loaded, ids)
    for (pos, known), wanted in zip(held(engine), expected, strict=True):
        assert pos.tolist() == [[*range(40)]] * 2
        torch.testing.assert_close(known, wanted, rtol=1e-4, atol=1e-6)


def summed(loaded: LoadedModel, ids: list[int]) -> list[torch.Tensor]:
    """Attention of the repetition of a text to each of its keys, eagerly: of each layer [H_KV, n]."""
    loaded.model.set_attn_implementation("eager")
    with torch.inference_mode():
        seen = loaded.model(torch.tensor([ids * 2]), output_attentions=True).attentions
    loaded.model.set_attn_implementation("kvlite")
    return [layer[0, :, len(ids) :, : len(ids)].sum(1).view(2, -1, len(ids)).mean(1) for layer in seen]


def test_what_is_evicted_is_the_same_whatever_the_neighbours(loaded: LoadedModel) -> None:
    texts = [prompt(90, 1), prompt(63, 2)]
    together = make_engine(loaded, "40tok", "replay", rows=2)
    for start in range(0, 90, together.plan.chunk):
        together.score([text[start : start + together.plan.chunk] for text in texts])
    for row, text in enumerate(texts):
        alone = make_engine(loaded, "40tok", "replay")
        for start in range(0, len(text), alone.plan.chunk):
            alone.score([text[start : start + alone.plan.chunk]])
        for (pos, known), (other, others) in zip(held(alone), held(together, row), strict=True):
            assert torch.equal(pos, other)
            torch.testing.assert_close(known, others, rtol=1e-3, atol=1e-5)


def test_an_answer_is_repeated_too_once_it_is_a_chunk_long(loaded: LoadedModel) -> None:
    engine = make_engine(loaded, "64tok", "replay")
    assert engine.plan.chunk == 16
    answers(engine, [Request("a", prompt(20), max_tokens=30, row=0)])
    for pos, known in held(engine):
        assert bool((known[pos < 20] > 0).all()) and bool((known[(pos >= 20) & (pos < 36)] > 0).all())
        assert bool((known[pos >= 44] == 0).all())


def test_heads_with_different_numbers_of_slots_repeat_an_answer_too(loaded: LoadedModel) -> None:
    needs = [[0.1, 0.9], [0.9, 0.1], [0.4, 0.4], [0.1, 0.9]]
    engine = make_engine(loaded, "64tok", "replay", head_shares=lambda slots: needs)
    answers(engine, [Request("a", prompt(60), max_tokens=40, row=0)])
    assert len(engine.cache.parts) > 4
    for pos, known in held(engine):
        assert bool((known[pos < 4] > 0).all()) and bool((known > 0).sum() > known.numel() // 2)


def test_a_request_that_evicts_nothing_is_fed_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    echoes: list[int] = []
    forward = LoadedModel.forward

    def noted(self: LoadedModel, ids: torch.Tensor, cache: object, step: Step, last: int = 1) -> torch.Tensor:
        echoes.append(step.echoes)
        return forward(self, ids, cache, step, last)  # type: ignore[arg-type]

    monkeypatch.setattr(LoadedModel, "forward", noted)
    answers(make_engine(loaded, "64tok", "replay"), [Request("a", prompt(20), max_tokens=30)])
    assert not any(echoes)
    answers(make_engine(loaded, "64tok", "replay"), [Request("a", prompt(40), max_tokens=30)])
    assert sum(echoes) >= 40  # and again as an answer


def test_a_hybrid_is_fed_once_since_its_state_would_take_the_repetition_in() -> None:
    model = admitted(tiny_model("lfm2", SUPPORTED["lfm2"]))
    request = Request("a", prompt(50), max_tokens=4)
    full, again = (answers(make_engine(model, "128tok", policy), [request])["a"] for policy in ("full", "replay"))
    assert again.ids == full.ids
    assert read_twice(model, "", [index for index, layer in enumerate(model.shape.layers) if layer.kind == "full"])


def test_what_heads_with_few_slots_evict_was_repeated_whatever_the_average_holds(loaded: LoadedModel) -> None:
    needs = [[0.1, 0.9], [0.9, 0.1], [0.4, 0.4], [0.1, 0.9]]
    engine = make_engine(loaded, "64tok", "replay", head_shares=lambda slots: needs)
    done = answers(engine, [Request("a", prompt(50), max_tokens=4)])["a"]
    assert min(map(min, engine.plan.head_slots)) < done.kv.tokens_seen <= engine.plan.fewest
    assert all(bool((known[pos < 4] > 0).all()) for pos, known in held(engine))


def test_a_neighbour_that_is_not_repeated_changes_nothing_of_when_an_answer_is(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    forward = LoadedModel.forward

    def noted(self: LoadedModel, ids: torch.Tensor, cache: object, step: Step, last: int = 1) -> torch.Tensor:
        if step.pos.shape[1] == 1 and step.echo is not None:
            widths.append(step.echo.width)
        return forward(self, ids, cache, step, last)  # type: ignore[arg-type]

    monkeypatch.setattr(LoadedModel, "forward", noted)
    fits, evicts = Request("fits", prompt(20), max_tokens=40), Request("evicts", prompt(40, 1), max_tokens=40)
    answers(make_engine(loaded, "64tok", "replay", rows=2), [fits, evicts])
    assert widths == [16, 16]


def test_positions_that_cannot_be_rotated_stay_and_end_with_the_window() -> None:
    model = admitted(tiny_model("gpt2", SUPPORTED["gpt2"]))
    assert model.window is not None
    engine = make_engine(model, "64tok", "replay")
    done = answers(engine, [Request("a", prompt(model.window - 6), max_tokens=20, row=0)])["a"]
    assert len(done.ids) == 7 and "positions are used up" in (done.cut_short or "")
    for part in engine.cache.parts:
        assert torch.equal(part.slots.pos[..., :64], part.slots.rot[..., :64])


def test_a_chunk_is_repeated_however_much_of_the_window_the_slots_take(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[tuple[int, int]] = []
    forward = LoadedModel.forward

    def noted(self: LoadedModel, ids: torch.Tensor, cache: object, step: Step, last: int = 1) -> torch.Tensor:
        fed.append((step.pos.shape[1], step.echoes))
        return forward(self, ids, cache, step, last)  # type: ignore[arg-type]

    monkeypatch.setattr(LoadedModel, "forward", noted)
    engine = make_engine(loaded, "400tok", "replay")
    assert engine.plan.slots == 400 < engine.plan.most_slots
    answers(engine, [Request("a", prompt(700), max_tokens=1, row=0)])
    assert all(echoes == tokens for tokens, echoes in fed)
