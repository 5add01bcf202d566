"""The loop: what a conversation, a batch and a full cache come to."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch

from kvlite.cache.policy import load_policy, policy_names
from kvlite.engine.engine import Engine
from kvlite.engine.request import Completion, FinishReason, Request, Sampling, Token
from kvlite.errors import BudgetTooSmall, ContextFull, NumericError, OutOfMemory, UsageError
from kvlite.models.loaded import LoadedModel
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine
from tests.matrix import but_few

PROMPT = tuple(range(5, 45))


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


@pytest.fixture(scope="module")
def gpt2() -> LoadedModel:
    return admitted(tiny_model("gpt2", SUPPORTED["gpt2"]))


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple((seed * 31 + i * 7) % 117 + 3 for i in range(length))


@pytest.mark.parametrize(
    "policy", but_few((name for name in policy_names() if name != "full"), "heavy-hitter", "window")
)
def test_an_answer_does_not_depend_on_the_batch(llama: LoadedModel, policy: str) -> None:
    assert_same_alone_and_in_a_batch(llama, policy, "auto")


@pytest.mark.parametrize("kv_dtype", ["int8", "k6v4", "int4"])
@pytest.mark.parametrize("policy", but_few(["heavy-hitter", "h2o", "window"], "heavy-hitter"))
def test_nor_does_it_over_low_bit_slots(policy: str, kv_dtype: str) -> None:
    loaded = admitted(tiny_model("llama", {}))
    loaded.model.double()  # in fp32, a batch's last bit may round a number to the next code
    assert_same_alone_and_in_a_batch(loaded, policy, kv_dtype)


def assert_same_alone_and_in_a_batch(loaded: LoadedModel, policy: str, kv_dtype: str) -> None:
    requests = [
        Request(str(i), prompt(i, 3 + 13 * i), Sampling(temperature=0.9 * (i % 2), seed=i), max_tokens=10 + 9 * i)
        for i in range(7)
    ]
    together = answers(make_engine(loaded, "24tok", policy, rows=3, kv_dtype=kv_dtype), requests)
    alone = answers(make_engine(loaded, "24tok", policy, kv_dtype=kv_dtype), requests)
    assert {key: done.ids for key, done in together.items()} == {key: done.ids for key, done in alone.items()}
    assert {key: done.kv.tokens_kept for key, done in together.items()} == {
        key: done.kv.tokens_kept for key, done in alone.items()
    }


def test_a_conversation_in_turns_equals_the_same_ids_at_once(llama: LoadedModel) -> None:
    engine = make_engine(llama, "200tok")
    first = answers(engine, [Request("1", PROMPT, max_tokens=9, row=0)])["1"]
    turn = prompt(3, 20)
    second = answers(engine, [Request("2", turn, max_tokens=9, row=0)])["2"]
    whole = answers(make_engine(llama, "200tok"), [Request("w", PROMPT + first.ids + turn, max_tokens=9)])["w"]
    assert second.ids == whole.ids
    assert second.kv.tokens_seen == len(PROMPT) + 9 + len(turn) + 8  # the last sampled token is not fed yet


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_chunk_size_does_not_change_the_answer_while_nothing_is_evicted(llama: LoadedModel, chunk: int) -> None:
    expected = answers(make_engine(llama, "200tok"), [Request("a", PROMPT, max_tokens=20)])["a"].ids
    assert (
        answers(make_engine(llama, "200tok", chunk_limit=chunk), [Request("a", PROMPT, max_tokens=20)])["a"].ids
        == expected
    )


def test_queries_too_old_to_count_once_the_prompt_is_through_change_no_statistic(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statistics() -> list[torch.Tensor]:
        engine = make_engine(llama, "64tok", policy="heavy-hitter:decay=0.3")  # 2^-24 is a weight 14 queries back
        answers(engine, [Request("a", PROMPT, max_tokens=1)])
        return [part.tensors["statistic"][..., : len(PROMPT)] for part in engine.cache.parts]

    some = statistics()
    monkeypatch.setattr("kvlite.cache.observing.NEGLIGIBLE", 1e-300)
    for one, every in zip(some, statistics(), strict=True):
        assert torch.allclose(one, every, rtol=1e-5, atol=1e-6)
        assert one.sum() > 0


def test_a_row_keeps_nothing_of_the_one_before(llama: LoadedModel) -> None:
    engine = make_engine(llama, "32tok")
    fresh = answers(engine, [Request("a", PROMPT, max_tokens=20)])["a"]
    answers(engine, [Request("b", prompt(9, 60), max_tokens=30)])
    assert answers(engine, [Request("a", PROMPT, max_tokens=20)])["a"].ids == fresh.ids


@pytest.mark.parametrize("kv_dtype", ["auto", "int4"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "lfm2", "qwen3_next"])
def test_a_restored_snapshot_continues_with_the_same_tokens(family: str, kv_dtype: str) -> None:
    engine = make_engine(admitted(tiny_model(family, SUPPORTED[family])), "32tok", kv_dtype=kv_dtype)
    answers(engine, [Request("1", prompt(1, 50), max_tokens=30, row=0)])
    snapshot = engine.rows.snapshot(0)
    first = answers(engine, [Request("2", prompt(2, 9), max_tokens=25, row=0)])["2"]
    engine.rows.restore(0, snapshot)
    again = answers(engine, [Request("2", prompt(2, 9), max_tokens=25, row=0)])["2"]
    assert (again.ids, again.kv) == (first.ids, first.kv)
    assert snapshot.num_bytes > 0


def test_rows_of_another_size_give_the_same_answers_and_the_old_ones_are_gone(llama: LoadedModel) -> None:
    engine = make_engine(llama, "200tok", rows=2)
    requests = [Request(str(i), prompt(i, 30 + 20 * i), max_tokens=12) for i in range(5)]
    before, held = answers(engine, requests), weakref.ref(engine.cache)
    engine.rows.resize(make_engine(llama, "122tok", rows=4).plan)
    gc.collect()
    assert held() is None
    assert (len(engine.rows), engine.rows.counts().tokens_seen) == (4, 0)
    after = answers(engine, requests)
    assert {key: done.ids for key, done in after.items()} == {key: done.ids for key, done in before.items()}
    assert [done.kv.tokens_evicted for done in after.values()] == [0] * 5


def test_rows_that_were_refused_leave_the_way_back_to_those_before(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama, "60tok", rows=2)
    before, larger = engine.plan, make_engine(llama, "60tok", rows=4).plan

    def refuse(*_: object) -> None:
        raise OutOfMemory("there is no more")

    with monkeypatch.context() as patch, pytest.raises(OutOfMemory):
        patch.setattr("kvlite.engine.feeder_maker.SlotCache", refuse)
        engine.rows.resize(larger)
    engine.rows.resize(before)
    assert len(answers(engine, [Request("a", prompt(1, 9), max_tokens=5)])["a"].ids) == 5


@pytest.mark.parametrize(("most", "steps"), [(15, 1), (16, 4)])
def test_a_prompt_whose_row_will_not_evict_is_fed_at_once(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, most: int, steps: int
) -> None:
    engine = make_engine(llama, "64tok")
    fed: list[int] = []
    begin = engine.cache.begin

    def noted(*step: Any, **options: Any) -> Any:
        fed.append(step[3][0])
        return begin(*step, **options)

    monkeypatch.setattr(engine.cache, "begin", noted)
    next(engine.run([Request("a", prompt(0, 50), max_tokens=most)]))
    assert len(fed) == steps


def test_a_stop_id_ends_the_answer_and_is_no_token_of_it(llama: LoadedModel) -> None:
    free = answers(make_engine(llama), [Request("a", PROMPT, max_tokens=12)])["a"].ids
    stop = next(token for token in free if token != free[0])
    done = answers(make_engine(llama), [Request("a", PROMPT, max_tokens=12, stop_ids=frozenset({stop}))])["a"]
    assert done.finish_reason is FinishReason.STOP
    assert done.ids == free[: free.index(stop)]


def test_cancelling_keeps_the_partial_answer(llama: LoadedModel) -> None:
    engine = make_engine(llama)
    events = []
    for event in engine.run([Request("a", PROMPT)]):
        events.append(event)
        if isinstance(event, Token) and event.index == 4:
            engine.cancel("a")
    assert [type(event) for event in events] == [*[Token] * 5, Completion]
    assert events[-1].finish_reason is FinishReason.CANCELLED
    assert len(events[-1].ids) == 5


def test_requests_are_pulled_only_as_rows_come_free(llama: LoadedModel) -> None:
    pulled = []

    def source() -> Iterator[Request]:
        for number in range(6):
            pulled.append(number)
            yield Request(str(number), PROMPT, max_tokens=3)

    events = make_engine(llama, rows=2).run(source())
    next(events)
    assert pulled == [0, 1]
    assert sum(isinstance(event, Completion) for event in events) == 6


def test_closing_the_stream_frees_the_rows(llama: LoadedModel) -> None:
    engine = make_engine(llama)
    stream = engine.run([Request("a", PROMPT)])
    next(stream)
    stream.close()
    assert len(answers(engine, [Request("b", PROMPT, max_tokens=2)])["b"].ids) == 2


def test_the_budget_holds_at_every_step_and_the_tensors_never_move(llama: LoadedModel) -> None:
    engine = make_engine(llama, "24tok", rows=2)
    addresses = [tensor.data_ptr() for tensor in engine.cache.tensors()]
    for event in engine.run([Request(str(i), prompt(i, 70), max_tokens=40) for i in range(4)]):
        held = sum(engine.cache.live_bytes(row) for row in range(len(engine.rows)))
        assert held <= engine.cache.num_bytes == engine.plan.reserved_bytes <= engine.plan.budget_bytes
        assert isinstance(event, Token) or event.kv.tokens_kept <= 24
    assert addresses == [tensor.data_ptr() for tensor in engine.cache.tensors()]


@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
def test_fewer_bits_hold_more_tokens_in_the_same_bytes(llama: LoadedModel, kv_dtype: str) -> None:
    wide, narrow = make_engine(llama, "20KB"), make_engine(llama, "20KB", kv_dtype=kv_dtype)
    assert narrow.plan.slots > 1.8 * wide.plan.slots
    answers(narrow, [Request("a", prompt(0, 100), max_tokens=40, row=0)])
    counts = narrow.rows.counts()
    assert counts.dtype == kv_dtype and counts.tokens_kept == narrow.plan.slots
    assert sum(tensor.nbytes for tensor in narrow.cache.tensors()) == counts.reserved_bytes <= 20_000
    assert counts.live_bytes == counts.peak_bytes < counts.reserved_bytes
    assert narrow.rows.snapshot(0).num_bytes == counts.live_bytes


def test_a_full_cache_that_may_not_evict_stops(llama: LoadedModel) -> None:
    done = answers(make_engine(llama, "50tok", "full"), [Request("a", PROMPT)])["a"]
    assert (done.finish_reason, done.error) == (FinishReason.LENGTH, None)
    assert done.kv.tokens_seen == done.kv.tokens_kept == 50
    assert len(done.ids) == 11  # the last one needs no slot
    assert done.cut_short is not None and "all 50 slots are full" in done.cut_short


def test_what_the_window_cannot_hold_is_not_answered_with_a_larger_budget(llama: LoadedModel) -> None:
    engine = make_engine(llama, "64tok")
    with pytest.raises(BudgetTooSmall, match="give --kv-budget"):
        engine.rows.check_pins(((0, 100),))
    with pytest.raises(BudgetTooSmall, match="the model's window has room for"):
        engine.rows.check_pins(((0, 10_000),))


def test_a_policy_that_evicts_nothing_cannot_be_asked_to(llama: LoadedModel) -> None:
    with pytest.raises(UsageError, match="--on-full evict contradicts --kv-policy full"):
        make_engine(llama, "50tok", "full", on_full="evict")
    assert (make_engine(llama, "50tok", "full").rows.on_full, make_engine(llama, "50tok").rows.on_full) == (
        "stop",
        "evict",
    )


def test_a_full_cache_is_an_error_where_asked(llama: LoadedModel) -> None:
    done = answers(make_engine(llama, "50tok", on_full="error"), [Request("a", PROMPT)])["a"]
    assert isinstance(done.error, ContextFull)
    too_long = answers(make_engine(llama, "30tok", on_full="stop"), [Request("a", PROMPT)])["a"]
    assert isinstance(too_long.error, ContextFull)
    assert too_long.ids == ()


def test_a_prompt_longer_than_learned_positions_is_refused(gpt2: LoadedModel) -> None:
    done = answers(make_engine(gpt2, "100tok"), [Request("a", prompt(1, 513))])["a"]
    assert isinstance(done.error, ContextFull)
    assert "cannot be re-rotated" in str(done.error)


def test_learned_positions_end_the_answer_with_the_window(gpt2: LoadedModel) -> None:
    done = answers(make_engine(gpt2, "100tok"), [Request("a", prompt(1, 500))])["a"]
    assert (done.finish_reason, done.kv.tokens_seen) == (FinishReason.LENGTH, 512)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "cohere", "deepseek_v3", "qwen3_next"])
def test_rotary_positions_go_on_past_the_window(family: str) -> None:
    settings = {**SUPPORTED[family], "max_position_embeddings": 64}
    engine = make_engine(admitted(tiny_model(family, settings)), "32tok")
    done = answers(engine, [Request("a", prompt(1, 150), max_tokens=200)])["a"]
    assert done.kv.tokens_seen == 349
    for part in engine.cache.parts:
        assert int(part.slots.rot.max()) < 64


def test_pins_survive_and_too_many_are_refused(llama: LoadedModel) -> None:
    engine = make_engine(llama, "32tok")
    answers(engine, [Request("a", prompt(1, 80), max_tokens=100, pins=((6, 16),))])
    for part in engine.cache.parts:
        for head in part.slots.pos[0]:
            assert set(range(6, 16)) | set(range(4)) <= set(head.tolist())
    refused = answers(engine, [Request("b", prompt(1, 80), pins=((0, 31),))])["b"]
    assert isinstance(refused.error, BudgetTooSmall)


def test_pins_may_fill_a_row_that_will_not_evict(llama: LoadedModel) -> None:
    engine = make_engine(llama, "64tok")
    asked = [Request("a", prompt(1, 60), max_tokens=most, pins=((0, 58),)) for most in (5, 6)]
    fits, evicts = (answers(engine, [one])["a"] for one in asked)
    assert (fits.error, len(fits.ids)) == (None, 5)
    assert isinstance(evicts.error, BudgetTooSmall)


def test_the_budget_a_refusal_names_really_works(llama: LoadedModel) -> None:
    request = Request("b", prompt(1, 80), max_tokens=5, pins=((0, 40),))
    error = answers(make_engine(llama, "32tok"), [request])["b"].error
    assert isinstance(error, BudgetTooSmall)
    named = str(error).split("--kv-budget ")[1].split(" or")[0].replace(" ", "").replace(",", "")
    assert answers(make_engine(llama, named), [request])["b"].error is None


def test_a_refused_turn_leaves_the_conversation_as_it_was(llama: LoadedModel) -> None:
    engine = make_engine(llama, "60tok", on_full="stop")
    answers(engine, [Request("1", PROMPT, max_tokens=5, row=0)])
    before = engine.rows.counts()
    assert answers(engine, [Request("2", prompt(1, 100), row=0)])["2"].error is not None
    assert engine.rows.counts() == before
    assert answers(engine, [Request("3", prompt(1, 4), max_tokens=3, row=0)])["3"].error is None


def test_two_hundred_turns_stay_flat(llama: LoadedModel) -> None:
    engine = make_engine(llama, "64tok")
    addresses = [tensor.data_ptr() for tensor in engine.cache.tensors()]
    process, resident = psutil.Process(), []
    for turn in range(200):
        done = answers(engine, [Request(str(turn), prompt(turn, 12), max_tokens=8, row=0)])[str(turn)]
        assert done.kv.tokens_kept <= 64
        if turn % 50 == 49:
            gc.collect()
            resident.append(process.memory_info().rss)
    assert done.kv.tokens_seen == 200 * 20 - 1
    assert done.kv.reserved_bytes == engine.plan.reserved_bytes == engine.cache.num_bytes
    assert addresses == [tensor.data_ptr() for tensor in engine.cache.tensors()]
    assert resident[-1] - resident[0] < 8_000_000


def test_a_row_that_overflowed_does_not_poison_the_next(llama: LoadedModel) -> None:
    engine = make_engine(llama, "32tok")
    clean = answers(engine, [Request("a", PROMPT, max_tokens=10)])["a"].ids
    for part in engine.cache.parts:
        part.tensors["v"][0, :, :20] = torch.nan
    poisoned = answers(engine, [Request("b", PROMPT[:4], max_tokens=4, row=0)])["b"]
    assert isinstance(poisoned.error, NumericError)
    assert answers(engine, [Request("a", PROMPT, max_tokens=10)])["a"].ids == clean


def test_a_source_with_nothing_ready_does_not_hold_up_the_rows(llama: LoadedModel) -> None:
    order: list[str] = []

    def source() -> Iterator[Request | None]:
        yield Request("first", PROMPT, max_tokens=3)
        while "first" not in order:
            yield None
        yield Request("second", PROMPT, max_tokens=3)

    for event in make_engine(llama, rows=2).run(source()):
        if isinstance(event, Completion):
            order.append(event.request_id)
    assert order == ["first", "second"]


def test_sinks_stay_beside_pins_in_the_middle(llama: LoadedModel) -> None:
    request = Request("a", prompt(1, 80), max_tokens=60, pins=((20, 40),))
    needed = load_policy("heavy-hitter").min_slots(20)
    engine = make_engine(llama, f"{needed}tok")
    assert answers(engine, [request])["a"].error is None
    for part in engine.cache.parts:
        for head in part.slots.pos[0]:
            assert {0, 1, 2, 3, *range(20, 40)} <= set(head.tolist())


def test_pins_must_fit_the_smallest_layer_of_a_pyramid_and_the_budget_named_holds_them(llama: LoadedModel) -> None:
    request = Request("a", prompt(1, 80), max_tokens=4, pins=((20, 40),))
    refused = answers(make_engine(llama, "60tok", "pyramid"), [request])["a"].error
    assert isinstance(refused, BudgetTooSmall)
    named = str(refused).split("give --kv-budget ")[1].split(" or more")[0]
    engine = make_engine(llama, named, "pyramid")
    assert len({part.num_slots for part in engine.cache.parts}) > 1
    assert answers(engine, [request])["a"].error is None
    heads = [head for part in engine.cache.parts for head in part.slots.pos[0]]
    assert all({*range(20, 40)} <= set(head.tolist()) for head in heads)


def test_a_hybrids_snapshot_counts_its_state_and_lies_on_the_host() -> None:
    engine = make_engine(admitted(tiny_model("lfm2", SUPPORTED["lfm2"])), "32tok")
    answers(engine, [Request("a", PROMPT, max_tokens=5, row=0)])
    snapshot = engine.rows.snapshot(0)
    assert snapshot.state is not None and engine.loaded.state is not None
    assert snapshot.num_bytes == snapshot.cache.num_bytes + engine.loaded.state.num_bytes
    addresses = [tensor.data_ptr() for tensor in engine.loaded.state.tensors()]
    engine.rows.reset(0)
    engine.rows.restore(0, snapshot)
    assert addresses == [tensor.data_ptr() for tensor in engine.loaded.state.tensors()]


def test_a_busy_row_is_not_given_away(llama: LoadedModel) -> None:
    engine: Engine = make_engine(llama, rows=2)
    with pytest.raises(UsageError, match="busy"):
        list(engine.run([Request("a", PROMPT, max_tokens=3, row=0), Request("b", PROMPT, max_tokens=3, row=0)]))


def test_hybrids_run_one_row_at_a_time() -> None:
    loaded = admitted(tiny_model("lfm2", SUPPORTED["lfm2"]))
    with pytest.raises(UsageError, match="one row at a time"):
        make_engine(loaded, "32tok", rows=2)


@pytest.mark.parametrize(("rows", "most"), [(1, 1), (2, 2)])
def test_a_decode_step_copies_its_numbers_to_the_device_at_once(
    rows: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each copy makes the host wait; rows of different lengths need another, for their slots."""
    engine = make_engine(admitted(tiny_model("llama", {})), "64tok", rows=rows)
    asked = [Request(str(i), tuple(range(5, 15 + 3 * i)), max_tokens=9, pins=((0, 2),)) for i in range(rows)]
    stream, made = engine.run(asked), []
    original = torch.tensor

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        made.append(args)
        return original(*args, **options)

    for _ in range(3 * rows):
        next(stream)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "tensor", counted)
        for _ in range(4 * rows):
            next(stream)
    assert 0 < len(made) <= 4 * most
