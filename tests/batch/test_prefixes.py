"""The beginnings that prompts share are found, whatever their order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch import prefixes
from kvlite.batch.prefixes import LEAST, SharedPrefixes, shared_prefixes
from kvlite.batch.waiting import Waiter, Waiting
from kvlite.engine.request import Request
from kvlite.text.encoder import common_start

SYSTEM, DOCUMENT = tuple(range(100)), tuple(range(1000, 1300))


def test_a_system_prompt_a_document_and_samples_are_three_levels() -> None:
    prompts = {f"q{n}": (*SYSTEM, n, *range(50)) for n in range(5)}
    prompts |= {f"d{n}": (*SYSTEM, *DOCUMENT, n, *range(60)) for n in range(4)}
    prompts |= {f"s{n}": (*SYSTEM, *DOCUMENT, 77, *range(70)) for n in range(8)}
    names = [*prompts]
    random.Random(0).shuffle(names)
    found = shared_prefixes({name: prompts[name] for name in names})
    assert {found[f"q{n}"] for n in range(5)} == {(100,)}
    assert {found[f"d{n}"] for n in range(4)} == {(100, 400)}
    assert {found[f"s{n}"] for n in range(8)} == {(100, 400, 470)}


def test_short_beginnings_and_lone_prompts_are_not_shared() -> None:
    assert shared_prefixes({"a": tuple(range(LEAST - 1)), "b": tuple(range(LEAST - 1))}) == {"a": (), "b": ()}
    assert shared_prefixes({"a": SYSTEM}) == {"a": ()}
    assert shared_prefixes({}) == {}


ids = st.lists(st.integers(0, 1), max_size=12).map(tuple)


@given(st.lists(ids, max_size=12))
def test_every_length_is_shared_with_another_and_one_id_is_left(prompts: list[tuple[int, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "LEAST", 2)
        found = shared_prefixes({str(n): each for n, each in enumerate(prompts)})
    for n, each in enumerate(prompts):
        others = [prompt for other, prompt in enumerate(prompts) if other != n]
        longest = max((common_start(each, other) for other in others), default=0)
        lengths = found[str(n)]
        assert list(lengths) == sorted(set(lengths))
        assert all(2 <= length < len(each) for length in lengths)
        assert all(any(common_start(each, other) >= length for other in others) for length in lengths)
        assert bool(lengths) == (min(longest, len(each) - 1) >= 2)


def request(name: str, ids: tuple[int, ...]) -> Request:
    return Request(name, ids, max_tokens=1)


def test_a_beginning_that_was_shared_is_known_when_it_comes_back_alone() -> None:
    shared, system = SharedPrefixes(is_wanted=True), tuple(range(40))
    waiting = Waiting()

    def give(*requests: Request) -> list[tuple[int, ...]]:
        waiting.put(Waiter(None, one, 50) for one in requests)  # type: ignore[arg-type]
        shared.compare(waiting)
        return [shared.give(waiting.take(0, 99).request, waiting).prefixes for _ in requests]  # type: ignore[union-attr]

    assert give(request("a", (*system, 50)), request("b", (*system, 51))) == [(40,), (40,)]
    others = [request(f"other {number}", tuple(range(number, number + 40))) for number in range(100, 200)]
    assert set(give(*others)) == {()}
    assert give(request("c", (*system, 52))) == [(40,)]


def test_requests_that_begin_alike_get_their_rows_one_behind_the_other() -> None:
    shared, waiting = SharedPrefixes(is_wanted=True), Waiting()
    beginnings = [(*SYSTEM, *range(base, base + 50)) for base in (1000, 2000, 3000)]
    works = [Waiter(None, request(f"{n % 3}{n}", (*beginnings[n % 3], n)), 200, n) for n in range(12)]  # type: ignore[arg-type]
    lone = Waiter(None, request("lone", (5, 6, 7)), 200, 7)  # type: ignore[arg-type]
    waiting.put([*works[:7], lone, *works[7:]])
    shared.compare(waiting)
    assert (waiting.oldest.number, len(waiting)) == (0, 13)
    names = [waiting.take(0, 200).request.id for _ in range(13)]  # type: ignore[union-attr]
    assert names == ["00", "03", "06", "09", "11", "14", "17", "110", "22", "25", "28", "211", "lone"]
