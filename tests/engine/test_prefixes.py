"""Beginnings that requests share are fed once, change no answer and stay inside the budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from kvlite.cache.policy import load_policy
from kvlite.engine.engine import Engine
from kvlite.engine.request import Completion, FinishReason, Request, Sampling, Token
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from kvlite.memory.plan import MOST_CHUNK, plan_cache
from kvlite.models.loaded import LoadedModel
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers

SYSTEM = tuple(3 + (i * 7) % 100 for i in range(60))


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


def engine_with_room(
    loaded: LoadedModel, slots: int, rows: int, copies: int, policy: str = "heavy-hitter", chunk: int = MOST_CHUNK
) -> Engine:
    """An engine of `rows` rows, with room in its budget for so many tokens beside them."""
    rule = load_policy(policy)
    spec = rule.cache_spec(slot_format("auto", "float32"), None, chunk)
    plan = plan_cache(loaded.shape, Budget.parse(f"{slots}tok"), spec, rows=rows, free_bytes=None)
    spare = (
        plan_cache(loaded.shape, Budget.parse(f"{copies}tok"), spec, free_bytes=None).reserved_bytes if copies else 0
    )
    return Engine(loaded, replace(plan, budget_bytes=plan.reserved_bytes + spare), rule, spec.slot_format)


def requests(count: int = 6, most: int = 8) -> list[Request]:
    return [
        Request(
            str(n),
            (*SYSTEM, *range(5 + n, 12 + 2 * n)),
            Sampling(temperature=0.8 * (n % 2), seed=n),
            most,
            pins=((0, 10),),
            prefixes=(40, 60),
        )
        for n in range(count)
    ]


def fed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of ids that prefills feed, as they come."""
    counts: list[int] = []
    begin = engine.cache.begin

    def counting(*step: Any, **options: Any) -> object:
        counts.extend(count for count in step[3] if count)
        return begin(*step, **options)

    monkeypatch.setattr(engine.cache, "begin", counting)
    return counts


@pytest.mark.parametrize("rows", [1, 3])
def test_answers_are_those_without_sharing_and_the_prefix_is_fed_once(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    alone = answers(engine_with_room(llama, 120, rows, 0), requests())
    engine = engine_with_room(llama, 120, rows, 100)
    counts = fed(engine, monkeypatch)
    together = answers(engine, requests())
    assert {name: done.ids for name, done in together.items()} == {name: done.ids for name, done in alone.items()}
    assert sorted(done.cached_tokens for done in together.values()) == [0, *[60] * 5]
    assert {done.cached_tokens for done in alone.values()} == {0}
    prompts = sum(len(request.ids) for request in requests())
    decoded = sum(len(done.ids) - 1 for done in together.values())
    assert sum(counts) == prompts - 5 * 60 + decoded
    assert 0 < engine.rows.prefixes.num_bytes <= engine.plan.budget_bytes - engine.plan.reserved_bytes


def test_rows_that_hold_their_lines_whole_share_beginnings_shorter_than_a_chunk(llama: LoadedModel) -> None:
    engine = engine_with_room(llama, 120, 1, 100, "replay")
    assert engine.plan.chunk > 60
    assert [done.cached_tokens for done in answers(engine, requests(3)).values()] == [0, 60, 60]


def test_a_row_that_evicts_later_may_begin_with_a_copy(llama: LoadedModel) -> None:
    found = answers(engine_with_room(llama, 64, 1, 100), requests(3, most=40)).values()
    assert [done.cached_tokens for done in found] == [0, 48, 48]  # where a chunk ends
    assert all(done.kv.tokens_evicted > 0 for done in found)


@pytest.mark.parametrize("policy", ["heavy-hitter", "replay"])
def test_answers_that_evict_are_those_without_sharing(llama: LoadedModel, policy: str) -> None:
    asked = requests(4, most=60)
    alone, shared = (
        answers(engine_with_room(llama, 64, 1, copies, policy, 16), [replace(one, prefixes=ends) for one in asked])
        for copies, ends in ((0, ()), (100, (40, 59)))
    )
    assert {name: done.ids for name, done in shared.items()} == {name: done.ids for name, done in alone.items()}
    assert [done.cached_tokens for done in shared.values()] == [0, 48, 48, 48]
    assert all(done.kv.tokens_evicted > 0 for done in shared.values())


def test_samples_of_one_prompt_feed_it_once(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with_room(llama, 80, 4, 100)
    counts = fed(engine, monkeypatch)
    samples = [Request(str(n), SYSTEM, Sampling(1.0, seed=n), 2, prefixes=(59,)) for n in range(8)]
    assert sorted(done.cached_tokens for done in answers(engine, samples).values()) == [0, *[59] * 7]
    assert counts[0] == 59 and set(counts[1:]) == {1}


def test_without_room_for_a_copy_every_prompt_is_fed(llama: LoadedModel) -> None:
    done = answers(engine_with_room(llama, 120, 3, 0), requests())
    assert {one.cached_tokens for one in done.values()} == {0}


def test_the_prefix_used_longest_ago_goes_first(llama: LoadedModel) -> None:
    engine = engine_with_room(llama, 120, 1, 70)
    other = tuple(reversed(SYSTEM))
    asked = [Request(str(n), (*start, 9, n + 3), max_tokens=1, prefixes=(60,)) for n, start in enumerate(
        [SYSTEM, SYSTEM, other, other, SYSTEM])]  # fmt: skip
    assert [done.cached_tokens for done in answers(engine, asked).values()] == [0, 60, 0, 60, 0]


def test_those_that_wait_go_on_where_the_first_is_cancelled(llama: LoadedModel) -> None:
    engine = engine_with_room(llama, 700, 3, 700)
    long = tuple(3 + (i * 11) % 100 for i in range(600))
    asked = [Request(str(n), (*long, n + 3), max_tokens=3, prefixes=(600,)) for n in range(3)]

    def source() -> Iterator[Request | None]:
        yield from asked
        yield None
        engine.cancel("0")

    done = {event.request_id: event for event in engine.run(source()) if isinstance(event, Completion)}
    assert done["0"].finish_reason in (FinishReason.CANCELLED, FinishReason.LENGTH)
    assert [len(done[name].ids) for name in ("1", "2")] == [3, 3]


def test_a_resized_cache_has_no_copies_of_the_one_before(llama: LoadedModel) -> None:
    engine = engine_with_room(llama, 120, 2, 100)
    before = answers(engine, requests())
    engine.rows.resize(engine_with_room(llama, 150, 3, 100).plan)
    assert engine.rows.prefixes.num_bytes == 0
    assert {name: done.ids for name, done in answers(engine, requests()).items()} == {
        name: done.ids for name, done in before.items()
    }


def test_a_hybrid_shares_its_state_too() -> None:
    loaded = admitted(tiny_model("lfm2", SUPPORTED["lfm2"]))
    alone = answers(engine_with_room(loaded, 120, 1, 0), requests(3))
    shared = answers(engine_with_room(loaded, 120, 1, 200), requests(3))
    assert [done.cached_tokens for done in shared.values()] == [0, 60, 60]
    assert {name: done.ids for name, done in shared.items()} == {name: done.ids for name, done in alone.items()}


def test_tokens_come_along_as_ever(llama: LoadedModel) -> None:
    events = [event for event in engine_with_room(llama, 120, 2, 100).run(requests(2)) if isinstance(event, Token)]
    assert {name: [event.index for event in events if event.request_id == name] for name in ("0", "1")} == {
        "0": [*range(8)],
        "1": [*range(8)],
    }


def test_what_a_copy_knows_of_its_tokens_does_not_depend_on_the_prompt_that_it_was_fed_for(llama: LoadedModel) -> None:
    own = Request("own", (*SYSTEM, *range(5, 12)), max_tokens=1, prefixes=(60,))
    longer = Request("longer", (*SYSTEM, *range(5, 45)), max_tokens=1, prefixes=(60,))
    alone = engine_with_room(llama, 120, 1, 100, "heavy-hitter:decay=0.5")
    behind = engine_with_room(llama, 120, 1, 100, "heavy-hitter:decay=0.5")
    first, again = answers(alone, [own]), answers(behind, [longer, own])
    assert first["own"].cached_tokens == 0 and again["own"].cached_tokens == 60
    for one, other in zip(alone.cache.parts, behind.cache.parts, strict=True):
        assert one.slots.statistic is not None and other.slots.statistic is not None
        known, wanted = other.slots.statistic[..., :67], one.slots.statistic[..., :67]
        assert known.allclose(wanted, rtol=1e-3, atol=1e-7)


def test_a_copy_that_is_too_large_displaces_none(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with_room(llama, 120, 1, 45)
    answers(engine, [Request("a", SYSTEM, max_tokens=1, prefixes=(40,))])
    held = engine.rows.prefixes.num_bytes
    monkeypatch.setattr(
        engine.rows.prefixes, "_slot_bytes", 1
    )  # as of layers that slide, which hold few of many tokens
    answers(engine, [Request("b", SYSTEM[::-1], max_tokens=1, prefixes=(59,))])
    assert engine.rows.prefixes.num_bytes == held > 0
