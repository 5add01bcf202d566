"""Entries go through the engine and come out once each, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kvlite.batch.batch_run import BatchRun
from kvlite.batch.item import Code, Failure, Item, Outcome
from kvlite.batch.prepare import Preparer
from kvlite.batch.runner import run_in_order
from kvlite.batch.waiting import AHEAD
from kvlite.engine.request import FinishReason, Request, Token
from kvlite.errors import BudgetTooSmall, ContextFull, UsageError
from kvlite.options import AnswerOptions, BatchOptions


def bad(index: int) -> Item:
    return Item(index, index + 1, f"k{index}", "simple", Failure(Code.INVALID, "bad"))


@pytest.fixture
def new_run(text: Any, new_rows: Any) -> Callable[..., BatchRun]:
    def make(engine: Any, **options: Any) -> BatchRun:
        answer = AnswerOptions(temperature=options.pop("temperature", None))
        rows = engine if hasattr(engine, "fits") else new_rows(engine)
        return BatchRun(rows, Preparer(text, answer), BatchOptions(input="-", **options))

    return make


def outcomes(events: Iterator[Token | Outcome]) -> list[Outcome]:
    return [event for event in events if isinstance(event, Outcome)]


def texts(found: list[Outcome]) -> dict[str, str | None]:
    return {o.item.key: o.choices[0].text if o.failure is None else None for o in found}


def test_every_entry_has_one_outcome(new_engine: Any, new_run: Any, new_item: Any) -> None:
    entries: list[Item] = [new_item("abc", 0), bad(1), new_item("d", 2), new_item("efghi", 3), bad(4)]
    found = outcomes(new_run(new_engine(rows=2)).run(entries))
    assert len(found) == 5
    assert texts(found) == {"k0": "ABC", "k1": None, "k2": "D", "k3": "EFGHI", "k4": None}


def test_tokens_come_along(new_engine: Any, new_run: Any, new_item: Any) -> None:
    events = list(new_run(new_engine()).run([new_item("abc")]))
    assert [type(event).__name__ for event in events] == ["Token"] * 3 + ["Outcome"]


def test_input_is_read_no_further_than_needed(new_engine: Any, new_run: Any, new_item: Any) -> None:
    read: list[int] = []

    def entries() -> Iterator[Item]:
        for index in range(10**6):
            read.append(index)
            yield new_item("ab", index)

    events = new_run(new_engine(rows=3)).run(entries())
    for _ in range(30):
        next(events)
    assert len(read) < AHEAD + 30


def test_bad_lines_pass_without_piling_up(new_engine: Any, new_run: Any) -> None:
    events = new_run(new_engine()).run(bad(index) for index in range(10**9))
    assert [next(events).item.key for _ in range(3)] == ["k0", "k1", "k2"]


def test_rows_are_refilled_as_they_come_free(new_engine: Any, new_run: Any, new_item: Any) -> None:
    engine = new_engine(rows=2)
    found = outcomes(new_run(engine).run([new_item("x" * 50, 0), *(new_item("y", index) for index in range(1, 20))]))
    assert found[-1].item.key == "k0"
    assert engine.most_at_once == 2


def test_in_order_means_the_order_of_the_input(new_engine: Any, new_run: Any, new_item: Any) -> None:
    entries = [new_item("abcdef", 3), bad(4), new_item("a", 7), new_item("ab", 9)]
    found = outcomes(run_in_order(new_run(new_engine(rows=2)), entries))
    assert [outcome.item.index for outcome in found] == [3, 4, 7, 9]


def test_a_stop_string_ends_the_answer(new_engine: Any, new_run: Any, new_item: Any) -> None:
    engine = new_engine()
    (found,) = outcomes(new_run(engine).run([new_item("abcdef", stop=("CD",))]))
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("AB", FinishReason.STOP)
    assert found.choices[0].completion_tokens == 4


def test_several_choices_make_one_outcome(new_engine: Any, new_run: Any, new_item: Any) -> None:
    found = outcomes(new_run(new_engine(rows=2)).run([new_item("abc", n=5, sampling={"seed": 10}), new_item("d", 1)]))
    choices = next(outcome for outcome in found if outcome.item.key == "k0").choices
    assert [choice.seed for choice in choices] == [10, 11, 12, 13, 14]
    assert len(found) == 2


def test_max_tokens_is_length(new_engine: Any, new_run: Any, new_item: Any) -> None:
    (found,) = outcomes(new_run(new_engine()).run([new_item("abcdef", max_tokens=2)]))
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("AB", FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContextFull("long"), Code.CONTEXT_LENGTH),
        (BudgetTooSmall("small"), Code.KV_BUDGET),
        (UsageError("odd"), Code.INVALID),
        (RuntimeError("broken"), Code.INTERNAL),
    ],
)
def test_a_request_that_fails_is_a_failure_of_its_own(
    new_engine: Any, new_run: Any, new_item: Any, error: Exception, code: Code
) -> None:
    def fails(request: Request) -> Exception | None:
        return error if request.ids == (ord("b"),) else None

    found = outcomes(new_run(new_engine(fails=fails)).run([new_item("a", 0), new_item("b", 1), new_item("c", 2)]))
    assert texts(found) == {"k0": "A", "k1": None, "k2": "C"}
    failure = next(outcome.failure for outcome in found if outcome.failure)
    assert (failure.code, failure.message) == (code, str(error))


@pytest.mark.parametrize(("capped_by", "code"), [(None, Code.KV_BUDGET), ("window", Code.CONTEXT_LENGTH)])
def test_a_full_row_is_the_budgets_fault_unless_the_window_is_as_small(
    new_engine: Any, new_run: Any, new_item: Any, capped_by: str | None, code: Code
) -> None:
    engine = new_engine(fails=lambda request: ContextFull("full"))
    engine.rows.on_full, engine.plan.capped_by = "error", capped_by
    (found,) = outcomes(new_run(engine).run([new_item("a")]))
    assert found.failure is not None
    assert found.failure.code is code


def test_an_item_over_its_time_fails_and_keeps_what_it_had(
    new_engine: Any, new_run: Any, new_item: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(1000))
    monkeypatch.setattr("kvlite.batch.batch_run.time", SimpleNamespace(monotonic=lambda: float(next(now))))
    run = new_run(new_engine(rows=1), timeout=5)
    found = outcomes(run.run([new_item("x" * 100, 0), new_item("ab", 1)]))
    assert [outcome.failure.code if outcome.failure else None for outcome in found] == [Code.TIMEOUT, None]
    assert found[0].choices[0].text == "XXXXX"


def test_equal_greedy_items_run_once(new_engine: Any, new_run: Any, new_item: Any) -> None:
    engine = new_engine(rows=2)
    entries = [
        new_item("same", 0),
        new_item("same", 1),
        new_item("other", 2),
        new_item("same", 3, sampling={"seed": 9}),
    ]
    found = outcomes(new_run(engine, dedupe=True).run(entries))
    assert len(engine.pulled) == 2
    assert {o.item.key: o.deduped_from for o in found} == {"k0": None, "k1": "k0", "k2": None, "k3": "k0"}
    assert texts(found)["k3"] == "SAME"


def test_items_drawn_by_chance_are_not_deduplicated(new_engine: Any, new_run: Any, new_item: Any) -> None:
    engine = new_engine()
    run = new_run(engine, dedupe=True, temperature=1.0)
    list(run.run([new_item("same", 0), new_item("same", 1)]))
    assert len(engine.pulled) == 2


def test_items_equal_to_a_failed_one_run_themselves(new_engine: Any, new_run: Any, new_item: Any) -> None:
    failed: list[str] = []

    def fails(request: Request) -> Exception | None:
        if not failed or failed == [request.id]:
            failed[:] = [request.id]
            return ContextFull("once")
        return None

    run = new_run(new_engine(rows=2, fails=fails), dedupe=True)
    found = outcomes(run.run([new_item("same", index) for index in range(3)]))
    assert [outcome.failure is None for outcome in found] == [False, True, True]
    assert found[2].deduped_from == "k1"


def test_out_of_memory_halves_the_load_and_loses_nothing(new_engine: Any, new_run: Any, new_item: Any) -> None:
    engine = new_engine(rows=8)
    engine.out_of_memory_above = 2
    found = outcomes(new_run(engine).run([new_item("ab", index) for index in range(20)]))
    assert texts(found) == {f"k{index}": "AB" for index in range(20)}
    assert engine.loads[:3] == [8, 4, 2]


def test_after_one_oversized_record_the_others_run_together_again(new_engine: Any, new_run: Any, new_item: Any) -> None:
    engine = new_engine(rows=8)
    run = new_run(engine)
    found = outcomes(run.run([new_item("!" if index == 3 else "ab", index) for index in range(60)]))
    assert [outcome.item.key for outcome in found if outcome.failure] == ["k3"]
    assert run.width >= 8 and engine.loads[-20:-10] == [8] * 10


def test_tries_in_company_are_no_retries(new_engine: Any, new_run: Any, new_item: Any) -> None:
    found = outcomes(
        new_run(new_engine(rows=4), retries=2).run([new_item("!" if index == 0 else "ab", index) for index in range(4)])
    )
    (failed,) = [outcome for outcome in found if outcome.failure]
    assert failed.failure is not None and failed.failure.code is Code.OUT_OF_MEMORY
    assert failed.attempt == 4  # with three others, with one other, and twice alone


def test_an_item_that_does_not_fit_alone_is_given_up_after_its_retries(
    new_engine: Any, new_run: Any, new_item: Any
) -> None:
    engine = new_engine(rows=1)
    engine.out_of_memory_above = 0
    found = outcomes(new_run(engine, retries=2).run([new_item("ab", 0), new_item("cd", 1)]))
    assert [outcome.failure.code for outcome in found if outcome.failure] == [Code.OUT_OF_MEMORY] * 2
    assert [outcome.attempt for outcome in found] == [3, 3]


def test_what_is_not_there_yet_holds_up_nothing(new_engine: Any, new_run: Any, new_item: Any) -> None:
    engine = new_engine(rows=2)
    done: list[Outcome] = []

    def entries() -> Iterator[Item | None]:
        yield new_item("ab", 0)
        while not done:
            yield None
        yield bad(1)
        yield None
        yield new_item("cd", 2)

    for event in new_run(engine).run(entries()):
        if isinstance(event, Outcome):
            done.append(event)
    assert texts(done) == {"k0": "AB", "k1": None, "k2": "CD"}


def test_choices_are_kept_together_through_out_of_memory(new_engine: Any, new_run: Any, new_item: Any) -> None:
    engine = new_engine(rows=4)
    engine.out_of_memory_above = 1
    found = outcomes(new_run(engine).run([new_item("ab", 0, n=3), new_item("c", 1)]))
    assert sorted(len(outcome.choices) for outcome in found) == [1, 3]


def test_the_peak_is_that_of_all_rows(new_engine: Any, new_run: Any, new_item: Any) -> None:
    run = new_run(new_engine(rows=3))
    list(run.run([new_item("ab")]))
    assert run.peak_bytes == 30


def test_an_error_of_the_whole_engine_ends_the_run(new_engine: Any, new_run: Any, new_item: Any) -> None:
    def fails(request: Request) -> Exception | None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(new_run(new_engine(fails=fails)).run([new_item("ab")]))


def test_rows_are_made_for_the_lines_that_wait(new_engine: Any, new_rows: Any, new_run: Any, new_item: Any) -> None:
    rows = new_rows(new_engine(rows=4))
    outcomes(new_run(rows).run([new_item("x" * 40, index, max_tokens=20) for index in range(3)]))
    assert rows.fits == [(64, 3)]  # 60 slots, in steps of 32


class TightRows:
    """Rows of an engine that is never larger than a budget of slots, and no longer than `most_slots`."""

    def __init__(self, new_engine: Any, budget: int, most_slots: int) -> None:
        self._new_engine, self._budget, self.most_slots = new_engine, budget, most_slots
        self.engine: Any = None
        self.fits: list[tuple[int, int]] = []
        self.answered: list[tuple[int, set[str]]] = []

    def count(self, slots: int, lines: int) -> int:
        return int(min(self._budget // slots, lines))

    def fit(self, slots: int, lines: int, shared: int = 0) -> None:
        self.fits.append((slots, self.count(slots, lines)))
        self.engine = self._new_engine(rows=self.count(slots, lines))


def test_short_lines_do_not_wait_for_long_ones_and_none_is_lost(new_engine: Any, new_run: Any, new_item: Any) -> None:
    rows = TightRows(new_engine, budget=1000, most_slots=1000)
    items = [new_item("a" * (400 if index % 10 == 0 else 10), index, max_tokens=20) for index in range(200)]
    found = outcomes(new_run(rows).run(items))
    assert sorted(outcome.item.index for outcome in found) == list(range(200))
    assert rows.fits == [(32, 31), (448, 2)]
    assert [outcome.item.index % 10 for outcome in found[180:]] == [0] * 20


def test_a_line_longer_than_a_row_may_be_runs_in_the_longest(new_engine: Any, new_run: Any, new_item: Any) -> None:
    rows = TightRows(new_engine, budget=100, most_slots=100)
    found = outcomes(new_run(rows).run([new_item("a" * 500, 0), new_item("b", 1, max_tokens=5)]))
    assert {outcome.item.key for outcome in found} == {"k0", "k1"}
    assert rows.fits[-1] == (100, 1)


def test_a_line_of_another_size_is_overtaken_only_so_often(
    new_engine: Any, new_run: Any, new_item: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvlite.batch.batch_run.MOST_OVERTAKEN", 50)
    rows = TightRows(new_engine, budget=1000, most_slots=1000)
    items = (new_item("a" * (400 if index == 3 else 10), index, max_tokens=20) for index in range(10**6))
    keys: list[int] = []
    for event in new_run(rows).run(items):
        if isinstance(event, Outcome):
            keys.append(event.item.index)
            if event.item.index == 3:
                break
    assert len(keys) < 50 + 1024 + 2 * 31


def test_lines_of_one_shard_are_not_overtaken_by_those_of_others(new_engine: Any, new_run: Any, new_item: Any) -> None:
    rows = TightRows(new_engine, budget=1000, most_slots=1000)
    items = (new_item("a" * (400 if index % 5 == 0 else 10), 32 * index, max_tokens=20) for index in range(600))
    assert len(outcomes(new_run(rows).run(items))) == 600
    assert len(rows.fits) <= 4


def test_few_of_many_equal_lines_are_read_before_the_first_is_answered(
    new_engine: Any, new_run: Any, new_item: Any
) -> None:
    read = []

    def entries() -> Any:
        for index in range(10**9):
            read.append(index)
            yield new_item("the same", index)

    next(event for event in new_run(new_engine(), dedupe=True).run(entries()) if isinstance(event, Outcome))
    assert len(read) <= AHEAD + 2


def test_a_longer_line_of_a_slow_pipe_gets_its_row(new_engine: Any, new_run: Any, new_item: Any) -> None:
    rows = TightRows(new_engine, budget=1000, most_slots=1000)
    slow = [new_item("a" * 10, 0, max_tokens=10), None, None, new_item("a" * 300, 1, max_tokens=20), None]
    found = outcomes(new_run(rows).run(slow))
    assert [outcome.choices[0].completion_tokens for outcome in found] == [10, 20]
    assert [slots for slots, _ in rows.fits] == [32, 320]


def test_requests_say_what_they_share(new_engine: Any, new_run: Any, new_item: Any) -> None:
    system = "s" * 40
    items = [new_item(f"{system}{letter}", index) for index, letter in enumerate("abc")]
    items += [new_item("x" * 50, 3, n=2), new_item("alone" * 10, 4)]
    engine = new_engine(rows=2)
    outcomes(new_run(engine).run(items))
    assert {request.id: request.prefixes for request in engine.pulled} == {
        **{f"{index}.0": (40,) for index in range(3)},
        **{f"3.{choice}": (49,) for choice in range(2)},
        "4.0": (),
    }
    engine = new_engine(rows=2)
    outcomes(new_run(engine, prefix_cache=False).run(items))
    assert {request.prefixes for request in engine.pulled} == {()}


def test_the_lines_of_a_slow_pipe_share_with_those_before(new_engine: Any, new_run: Any, new_item: Any) -> None:
    engine = new_engine(rows=2)
    slow = [entry for index in range(4) for entry in (new_item("s" * 40 + str(index), index), None, None)]
    outcomes(new_run(engine).run(slow))
    assert [request.prefixes for request in engine.pulled] == [(), (40,), (40,), (40,)]
