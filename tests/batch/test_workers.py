"""A batch through workers that a test scripts: who gets what, who dies, what is said; every line ends once."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from kvlite.batch.item import Code, Failure, Item, Outcome
from kvlite.batch.workers.memory import Memory
from kvlite.batch.workers.messages import CacheNow, Link, Loaded, Order, Report, WorkerDied
from kvlite.batch.workers.team import FIRST_LEASES, MOST_DEATHS, Workers
from kvlite.console import Console
from kvlite.errors import DoesNotFit, KvliteError, ModelError
from kvlite.memory.counts import KVCounts
from kvlite.options import BatchOptions
from kvlite.record.recorder import Recorder

COUNTS = KVCounts(1000, 900, 100, 200, 5, 4, 1, "window", "float32")
LOADED = Report(loaded=Loaded("org/m@sha7", "org/m@sha", "here cpu"))
Answers = Callable[[int, int, Order], Report]


def answered(order: Order, rows: int = 2) -> Report:
    return Report(
        tuple(Outcome(item) for item in order.items), cache=CacheNow(COUNTS, None, rows, 1, 200), is_idle=True
    )


def plainly(number: int, life: int, order: Order) -> Report:
    return answered(order)


def one_at_a_time() -> Answers:
    """Workers that hold what they were given and answer one line of it to each order."""
    held: dict[tuple[int, int], list[Item]] = {}

    def answer(number: int, life: int, order: Order) -> Report:
        mine = held.setdefault((number, life), [])
        mine.extend(order.items)
        done, mine[:] = mine[:1], mine[1:]
        outcomes = tuple(map(Outcome, done))
        return Report(outcomes, cache=CacheNow(COUNTS, None, 2, len(mine[:2]), 200), is_idle=not mine)

    return answer


class ScriptedLink:
    """A worker in its `life`-th life: says that it is loaded, then what the script says to each order."""

    def __init__(self, answers: Answers, number: int, life: int) -> None:
        self.orders: list[Order] = []
        self.is_closed = False
        self._answers, self._number, self._life = answers, number, life

    def send(self, order: Order) -> None:
        self.orders.append(order)

    def receive(self) -> Report:
        order = self.orders[-1]
        return LOADED if len(self.orders) == 1 else self._answers(self._number, self._life, order)

    def close(self) -> None:
        self.is_closed = True


class Script:
    """A transport to scripted workers, all lives of which are in `links`."""

    def __init__(self, answers: Answers = plainly, labels: Sequence[str] = ("cpu", "cuda:0")) -> None:
        self.labels = labels
        self.sharers = None
        self.links: list[list[ScriptedLink]] = [[] for _ in labels]
        self._answers = answers

    def start(self, number: int) -> ScriptedLink:
        self.links[number].append(ScriptedLink(self._answers, number, len(self.links[number])))
        return self.links[number][-1]

    def wait(self, links: Sequence[Link], timeout_s: float) -> list[Link]:
        return [*links]

    def close(self) -> None:
        pass


def items(count: int) -> list[Item]:
    return [Item(index, index + 1, f"k{index}", prompt=f"{index:03}") for index in range(count)]


class Desk:
    def __init__(self) -> None:
        self.stderr = io.StringIO()

    def workers(self, script: Script, **options: Any) -> Workers:
        console = Console(stderr=self.stderr)
        memory = Memory(Recorder("batch", (), report="none"), "flag")
        return Workers(script, BatchOptions(input="-", **options), "org/m@sha", console, memory)

    def run(self, script: Script, lines: Iterable[Item | None], **options: Any) -> list[Outcome]:
        workers = self.workers(script, **options)
        workers.await_model()
        return [event for event in workers.run(lines) if isinstance(event, Outcome)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def ended(outcomes: Iterable[Outcome]) -> list[int]:
    return sorted(outcome.item.index for outcome in outcomes)


def test_every_line_ends_once_and_both_workers_answer(desk: Desk) -> None:
    script = Script()
    assert ended(desk.run(script, items(100))) == [*range(100)]
    for (link,) in script.links:
        assert sum(len(order.items) for order in link.orders) > 20


def test_lines_that_ask_for_the_same_end_at_the_worker_that_had_the_first(desk: Desk) -> None:
    script = Script()
    workers = desk.workers(script, dedupe=True)
    workers.await_model()
    lines = [Item(index, index + 1, f"k{index}", prompt="the same") for index in range(100)]
    found = [event for event in islice(workers.run(lines), 5000) if isinstance(event, Outcome)]
    assert ended(found) == [*range(100)]
    assert sorted(sum(len(order.items) for order in link.orders) for (link,) in script.links) == [0, 100]


@pytest.mark.parametrize("dedupe", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 3, 40])
@pytest.mark.parametrize("dies", [False, True])
def test_every_line_ends_once_while_workers_hold_others(desk: Desk, num_prompts: int, dedupe: bool, dies: bool) -> None:
    answer = one_at_a_time()

    def may_die(number: int, life: int, order: Order) -> Report:
        if dies and (number, life) == (0, 0) and len(script.links[0][0].orders) == 9:
            raise WorkerDied("was killed by SIGKILL")
        return answer(number, life, order)

    script = Script(may_die)
    workers = desk.workers(script, dedupe=dedupe)
    workers.await_model()
    lines = [Item(index, index + 1, f"k{index}", prompt=f"{index % num_prompts:03}") for index in range(120)]
    found = [event for event in islice(workers.run(lines), 5000) if isinstance(event, Outcome)]
    assert ended(found) == [*range(120)]
    assert len(script.links[0]) == 1 + dies
    given = [{item.prompt for order in links[-1].orders for item in order.items} for links in script.links]
    assert dies or not dedupe or not given[0] & given[1]


def test_the_bytes_of_all_workers_add_up(desk: Desk) -> None:
    workers = desk.workers(Script())
    workers.await_model()
    assert (workers.budget_bytes, workers.peak_bytes) == (0, 0)
    [*workers.run(items(10))]
    assert (workers.budget_bytes, workers.peak_bytes, workers.live_bytes()) == (2000, 400, 200)
    assert workers.memory.counts() == replace(
        COUNTS, budget_bytes=2000, reserved_bytes=1800, live_bytes=200, peak_bytes=400, tokens_seen=10, tokens_kept=8,
        tokens_evicted=2,
    )  # fmt: skip


def test_the_rows_of_a_worker_that_is_given_up_do_not_count(desk: Desk) -> None:
    def dies(number: int, life: int, order: Order) -> Report:
        if number == 0 and (life or len(order.items) < FIRST_LEASES):
            raise WorkerDied("was killed by SIGKILL")
        return answered(order)

    script = Script(dies)
    workers = desk.workers(script)
    workers.await_model()
    [*workers.run(items(400))]
    assert len(script.links[0]) == MOST_DEATHS
    assert (workers.num_rows, workers.rows_used, workers.live_bytes()) == (2, 1, 100)
    assert (workers.budget_bytes, workers.peak_bytes) == (2000, 400)


def test_a_line_that_cannot_be_read_needs_no_worker(desk: Desk) -> None:
    script = Script()
    bad = replace(items(1)[0], failure=Failure(Code.INVALID, "bad"))
    (outcome,) = desk.run(script, [bad])
    assert outcome.failure == bad.failure
    assert not any(order.items for (link,) in script.links for order in link.orders)


def test_a_pipe_that_waits_holds_up_nothing(desk: Desk) -> None:
    script, seen = Script(), []
    workers = desk.workers(script)
    workers.await_model()

    def pipe() -> Iterable[Item | None]:
        for item in items(5):
            yield item
            while item.index not in seen:
                yield None

    for event in workers.run(pipe()):
        if isinstance(event, Outcome):
            seen.append(event.item.index)
    assert seen == [*range(5)]


def test_towards_the_end_lines_are_shared_out_evenly(desk: Desk) -> None:
    script = Script()
    desk.run(script, items(4))
    assert [max(len(order.items) for order in link.orders) for (link,) in script.links] == [2, 2]
    assert all(order.to_come <= 1 for (link,) in script.links for order in link.orders if order.items)


def test_lines_of_a_worker_that_died_return_and_it_starts_anew(desk: Desk) -> None:
    def dies_once(number: int, life: int, order: Order) -> Report:
        if number == 0 and life == 0 and order.items:
            raise WorkerDied("was killed by SIGKILL")
        return answered(order)

    script = Script(dies_once)
    assert ended(desk.run(script, items(100))) == [*range(100)]
    assert len(script.links[0]) == 2
    expected = f"worker 1 (cpu) was killed by SIGKILL; {FIRST_LEASES} lines return, and it starts anew"
    assert expected in desk.stderr.getvalue()


def test_a_line_that_kills_whoever_has_it_becomes_a_failure_and_no_other_does(desk: Desk) -> None:
    def poisoned(number: int, life: int, order: Order) -> Report:
        if any(item.key == "k42" for item in order.items):
            return Report(crash="failed (ValueError: no)")
        return answered(order)

    script = Script(poisoned)
    found = desk.run(script, items(100))
    assert ended(found) == [*range(100)]
    (failed,) = [outcome for outcome in found if outcome.failure is not None]
    assert failed.item.key == "k42"
    assert failed.failure is not None and failed.failure.code is Code.INTERNAL
    assert "the worker that answered it alone failed (ValueError: no); " in failed.failure.message
    assert all(link.is_closed for links in script.links for link in links[:-1])


def test_a_broken_device_is_given_up_and_spoils_no_line(desk: Desk) -> None:
    def broken(number: int, life: int, order: Order) -> Report:
        if number == 0 and order.items:
            raise WorkerDied("was killed by SIGKILL")
        return answered(order, rows=1)

    script = Script(broken)
    found = desk.run(script, items(400))
    assert ended(found) == [*range(400)]
    assert not any(outcome.failure for outcome in found)
    assert len(script.links[0]) == MOST_DEATHS
    assert f"after {MOST_DEATHS} deaths in a row it does not start again" in desk.stderr.getvalue()


def test_without_a_worker_the_batch_ends(desk: Desk) -> None:
    def never(number: int, life: int, order: Order) -> Report:
        raise WorkerDied("was killed by SIGKILL")

    with pytest.raises(KvliteError, match=r"no worker is left: the last one .* was killed by SIGKILL; run the batch"):
        desk.run(Script(never), items(100))


def test_what_no_worker_can_begin_with_ends_the_batch_as_without_workers(desk: Desk) -> None:
    def too_small(number: int, life: int, order: Order) -> Report:
        return Report(error=DoesNotFit("the GPU is too small")) if number == 1 else Report()

    with pytest.raises(DoesNotFit, match=r"^cuda:0: the GPU is too small$"):
        desk.run(Script(too_small), items(3))


def test_an_error_in_the_midst_costs_a_worker_and_no_line(desk: Desk) -> None:
    def once(number: int, life: int, order: Order) -> Report:
        if number == 0 and life == 0 and any(item.index > 60 for item in order.items):
            return Report(error=DoesNotFit("the rows do not fit"))
        return answered(order)

    script = Script(once)
    found = desk.run(script, items(100))
    assert ended(found) == [*range(100)]
    assert not any(outcome.failure for outcome in found)


def test_a_worker_with_another_model_is_refused(desk: Desk) -> None:
    script = Script()
    workers = desk.workers(script)
    workers._identity = "org/m@other"
    with pytest.raises(ModelError, match="cpu: has org/m@sha, the batch is for org/m@other"):
        workers.await_model()


def test_what_a_worker_reports_of_a_line_that_is_not_its_own_is_dropped(desk: Desk) -> None:
    def twice(number: int, life: int, order: Order) -> Report:
        again = tuple(Outcome(item) for item in items(100)[:3])
        return replace(answered(order), outcomes=(*answered(order).outcomes, *again))

    assert ended(desk.run(Script(twice), items(50))) == [*range(50)]


def test_those_that_share_a_device_divide_its_memory(desk: Desk) -> None:
    script = Script(labels=("cpu", "cpu"))
    desk.run(script, items(50))
    firsts = [next(order for order in link.orders if order.items) for (link,) in script.links]
    assert firsts[0].sharers == 2


def test_what_several_say_alike_is_said_once(desk: Desk) -> None:
    def chatty(number: int, life: int, order: Order) -> Report:
        return replace(answered(order), said=(("note", "2 rows"), ("warn", "slow")))

    desk.run(Script(chatty, labels=("cpu", "cpu")), items(50))
    assert desk.stderr.getvalue().splitlines() == ["cpu: 2 rows", "kvlite: warning: cpu: slow"]
