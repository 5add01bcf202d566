"""The Triton kernel that evicts for all layers by neighbours, against its torch twin: to the bit, victim by victim."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvlite_kernels import ranking
from kvlite_kernels.kinds import Rank
from tests.parity.compare import assert_parity
from tests.parity.eviction import ALL, CASES, HEADS, LAYERS, NINE, PINS, ROWS, Case, by, check, copied, holding
from tests.parity.poison import poison, poisoned_empty

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":  # tests/conftest.py sets it where there is no CUDA device
    pytest.skip("on a CUDA device these need TRITON_INTERPRET=1", allow_module_level=True)

from kvlite_kernels.triton_set.writing import evict

__all__ = ["poison"]
pytestmark = pytest.mark.usefixtures("poison")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_token_that_waits_takes_the_slot_of_the_lowest(case: Case) -> None:
    held, q_pos = holding(case), torch.full((ROWS, 1), case.seen, dtype=torch.int32)
    check(held, case, q_pos)
    held.pos[..., -1] += 1  # and the next
    check(held, case, q_pos + 1)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_and_scales_move_as_they_are(bits: int) -> None:
    case = CASES["per token of age"]
    check(holding(case, bits), case, torch.full((ROWS, 1), case.seen, dtype=torch.int32))


def test_padding_takes_no_slot() -> None:
    case, q_pos = CASES["nine positions"], torch.tensor([[-1], [90]]).int()
    held = holding(case)
    held.pos[::ROWS, :, -1] = -1
    before = held.pos[::ROWS].clone()
    check(held, case, q_pos)
    assert_parity("positions", held.pos[::ROWS], before)


@pytest.mark.parametrize("row", range(ROWS))
def test_rows_that_are_not_fed_stay_as_they_are(row: int) -> None:
    case, held = CASES["pins"], holding(CASES["pins"])
    fed = replace(case, ranking=replace(case.ranking, pins=PINS[row : row + 1]))
    check(held, fed, torch.tensor([[case.seen]]).int(), slice(row, row + 1))


def test_a_statistic_that_is_no_number_frees_a_slot_all_the_same() -> None:
    case = Case(by(NINE, recent=1, sinks=0))
    held = holding(case)
    assert held.statistic is not None
    held.statistic.fill_(torch.nan)
    evict(held, ALL, LAYERS, torch.full((ROWS, 1), case.seen, dtype=torch.int32), case.ranking, None)
    assert ((held.pos[..., :-1] == case.seen).sum(-1) == 1).all()


def test_a_policy_without_a_statistic_needs_none() -> None:
    case = CASES["neighbours of a position"]
    held = replace(holding(case), statistic=None)
    twin, q_pos = copied(held), torch.full((LAYERS * ROWS, 1), case.seen, dtype=torch.int32)
    ranking.evict(twin, q_pos, case.ranking, None)
    evict(held, ALL, LAYERS, q_pos[:ROWS], case.ranking, None)
    assert_parity("positions", held.pos, twin.pos)


EVENTS = ("token", "token for one row", "other tokens", "free slots", "other order")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    slots = draw(st.integers(1, 24))
    rank = Rank(
        draw(st.sampled_from(("age", "statistic"))), draw(st.integers(1, 40)), draw(st.sampled_from((1, 3, 9, 15)))
    )
    spans = draw(st.lists(st.lists(st.integers(0, 60), min_size=2, max_size=2), min_size=ROWS, max_size=ROWS))
    pins = torch.tensor(spans).int()[:, None] if draw(st.booleans()) else None
    chosen = by(rank, slots, draw(st.integers(1, slots + 2)), draw(st.integers(0, 3)), pins)
    window = draw(st.none() | st.integers(2, 50))
    return Case(chosen, window, draw(st.integers(0, slots)), draw(st.booleans()), draw(st.integers(slots, 60)))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases(), st.lists(st.sampled_from(EVENTS), min_size=12, max_size=24), st.integers(0, 99))
def test_every_victim_of_a_long_run_is_the_twins_whatever_else_writes_slots(
    case: Case, events: list[str], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    held, q_pos, slots = holding(case, 0, generator), torch.full((ROWS, 1), case.seen, dtype=torch.int32), slice(-1)
    assert held.statistic is not None and held.order is not None
    for event in events:
        gained = torch.rand(held.statistic.shape, generator=generator)
        held.statistic.mul_(0.95).add_((2 * gained).int() if case.is_tied else gained).masked_fill_(held.pos < 0, 0.0)
        if event == "other tokens":  # a prompt, or a row that is restored
            fresh = holding(replace(case, free=0, seen=int(q_pos.max())), 0, generator)
            held.pos[0, :, slots].copy_(fresh.pos[0, :, slots])
        elif event == "free slots":
            held.pos[1, :, -2:-1] = -1
            held.statistic[1, :, -2:-1] = 0.0
        elif event == "other order":
            held.order[..., slots].copy_(held.order[..., slots].flip(-1))
        waiting = torch.where(torch.tensor([True, event != "token for one row"])[:, None], q_pos.max() + 1, -1).int()
        held.pos[..., -1].copy_(waiting.repeat(LAYERS, HEADS))
        q_pos = torch.where(waiting < 0, q_pos.max(), waiting).int()
        check(held, case, waiting)


def test_memory_around_the_order_is_left_alone() -> None:
    case, held = CASES["nine positions"], holding(CASES["nine positions"])
    whole = poisoned_empty(LAYERS * ROWS, HEADS, case.ranking.slots + 4, dtype=torch.int32)
    whole[..., :-3].copy_(torch.arange(case.ranking.slots + 1))
    q_pos = torch.full((ROWS, 1), case.seen, dtype=torch.int32)
    evict(replace(held, order=whole[..., :-3]), ALL, LAYERS, q_pos, case.ranking, None)
    assert (whole[..., -3:] == torch.iinfo(torch.int32).min).all()
    assert (whole[..., -4] == case.ranking.slots).all()
