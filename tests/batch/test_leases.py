"""Lines are leased to workers, return from those that die, and end once each."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch.item import Code, Item
from kvlite.batch.workers.leases import MOST_OVERTAKEN, MOST_WAITING, Leases


def items(*prompts: str) -> list[Item]:
    return [Item(index, index + 1, f"k{index}", prompt=prompt) for index, prompt in enumerate(prompts)]


def filled(leases: Leases, *prompts: str) -> Leases:
    for item in items(*prompts):
        leases.add(item)
    return leases


def keys(taken: tuple[Item, ...]) -> list[str]:
    return [item.key for item in taken]


def prompts(taken: tuple[Item, ...]) -> list[str | None]:
    return [item.prompt for item in taken]


EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["take", "take", "settle", "settle", "die"]), st.integers(1, 9)),
    max_size=60,
)


@given(st.lists(st.text("ab", max_size=3), max_size=30), EVENTS, st.booleans(), st.integers(0, 2))
def test_every_line_ends_once_whatever_becomes_of_workers(
    asked: list[str], events: list[tuple[int, str, int]], dedupe: bool, retries: int
) -> None:
    leases = filled(Leases(3, retries=retries, dedupe=dedupe), *asked)
    held: list[list[int]] = [[], [], []]
    ended: Counter[int] = Counter()

    def step(worker: int, what: str, number: int) -> None:
        if what == "take":
            held[worker] += [item.index for item in leases.take(worker, number, is_proven=number % 2 == 0)]
        elif what == "die":
            ended.update(outcome.item.index for outcome in leases.take_back(worker, "died"))
            held[worker].clear()
        elif held[worker]:
            index = held[worker].pop(number % len(held[worker]))
            assert leases.settle(worker, index)
            assert not leases.settle(worker, index)
            ended[index] += 1
        leased = [index for of in held for index in of]
        assert len(leased) == len(set(leased)) and not set(leased) & set(ended)

    for event in events:
        step(*event)
    for number in range(200):
        step(number % 3, "take", 2)
        step(number % 3, "settle", 0)
    while any(held):
        for worker in range(3):
            step(worker, "take", 2)
            step(worker, "settle", 0)
    assert leases.is_empty
    assert ended == Counter(range(len(asked)))


def test_lines_that_begin_alike_go_to_one_worker() -> None:
    leases = filled(Leases(2), *[f"{'xy'[number % 2]} {number:02}" for number in range(40)])
    first, second = (leases.take(worker, 5, is_proven=True) for worker in (0, 1))
    assert {prompt[0] for prompt in prompts(first) if prompt} == {"x"}
    assert {prompt[0] for prompt in prompts(second) if prompt} == {"y"}
    assert {prompt[0] for prompt in prompts(leases.take(0, 15, is_proven=True)) if prompt} == {"x"}


def test_who_comes_to_the_end_of_its_part_takes_half_of_the_largest() -> None:
    leases = filled(Leases(2), *[f"{number:03}" for number in range(100)])
    assert prompts(leases.take(0, 1, is_proven=True)) == ["000"]
    assert prompts(leases.take(1, 1, is_proven=True)) == ["050"]
    assert len(leases.take(1, 49, is_proven=True)) == 49
    assert prompts(leases.take(1, 1, is_proven=True)) == ["025"]


def test_no_line_is_overtaken_for_ever() -> None:
    leases = filled(Leases(1), "z")
    for index in range(1, MOST_OVERTAKEN + 3):
        leases.add(Item(index, index + 1, f"k{index}", prompt=f"a{index:06}"))
        taken = leases.take(0, 1, is_proven=True)
        if prompts(taken) == ["z"]:
            return
    pytest.fail("the first line never had its turn")


def test_what_waits_is_bounded_in_lines_and_characters() -> None:
    leases = Leases(1)
    for item in items(*["x"] * MOST_WAITING):
        assert not leases.is_full
        leases.add(item)
    assert leases.is_full
    assert filled(Leases(1), "x" * 2**22).is_full


def test_lines_that_one_worker_alone_may_have_wait_too() -> None:
    leases = Leases(2, dedupe=True)
    for item in items(*["x"] * MOST_WAITING):
        leases.add(item)
    assert len(leases.take(0, 1, is_proven=True)) == 1
    assert leases.take(1, MOST_WAITING, is_proven=True) == ()
    assert leases.reserved(0) == MOST_WAITING - 1
    leases.add(items("y")[0])
    assert leases.is_full


def test_lines_of_one_shard_are_overtaken_by_those_that_come_and_no_others() -> None:
    leases = Leases(1)
    for index in range(0, 40 * MOST_OVERTAKEN, MOST_OVERTAKEN):
        leases.add(Item(index, index + 1, f"k{index}", prompt=f"{100 - index // MOST_OVERTAKEN:03}"))
    assert prompts(leases.take(0, 3, is_proven=True)) == ["061", "062", "063"]


def test_a_line_that_kills_workers_fails_and_no_other_does() -> None:
    leases = filled(Leases(1, retries=1), *[f"{number:02}" for number in range(32)])
    deaths, ended, failures = 0, [], []
    while not leases.is_empty:
        taken = leases.take(0, 16, is_proven=True)
        if "k7" in keys(taken):
            deaths += 1
            failures += list(leases.take_back(0, "was killed by SIGKILL"))
            continue
        ended += keys(taken)
        for item in taken:
            leases.settle(0, item.index)
    (failed,) = failures
    assert (failed.item.key, deaths, failed.attempt) == ("k7", 3, 3)
    assert failed.failure is not None and failed.failure.code is Code.INTERNAL
    assert "alone was killed by SIGKILL" in failed.failure.message
    assert sorted([*ended, "k7"]) == sorted(f"k{number}" for number in range(32))


def test_suspects_run_beside_nothing_else_and_first_at_a_worker_that_has_finished_something() -> None:
    leases = filled(Leases(2), *"abcdefghij")
    suspects = leases.take(0, 4, is_proven=True)
    held = leases.take(1, 2, is_proven=True)
    assert [*leases.take_back(0, "died")] == []
    assert not set(keys(suspects)) & set(keys(leases.take(0, 1, is_proven=False)))
    assert leases.take(1, 4, is_proven=True) == ()
    for item in held:
        leases.settle(1, item.index)
    assert leases.take(1, 4, is_proven=True) == suspects[:1]
    assert leases.take(1, 4, is_proven=True) == ()


def test_lines_that_ask_for_the_same_go_to_the_same_worker() -> None:
    leases = filled(Leases(2, dedupe=True), "a", "b")
    (first,) = leases.take(0, 1, is_proven=True)
    leases.settle(0, first.index)
    leases.take(1, 1, is_proven=True)
    leases.add(Item(2, 3, "k2", prompt="a", sampling={"seed": 9}))
    leases.add(Item(3, 4, "k3", prompt="c"))
    assert keys(leases.take(1, 5, is_proven=True)) == ["k3"]
    assert not leases.is_empty
    assert keys(leases.take(0, 5, is_proven=True)) == ["k2"]


def test_what_is_kept_for_a_worker_that_dies_goes_to_others() -> None:
    leases = filled(Leases(2, dedupe=True), "a")
    leases.take(0, 1, is_proven=True)
    leases.add(Item(1, 2, "k1", prompt="a"))
    assert leases.take(1, 5, is_proven=True) == ()
    assert [*leases.take_back(0, "died")] == []
    assert keys(leases.take(1, 5, is_proven=False)) == ["k1"]
