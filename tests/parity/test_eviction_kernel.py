"""The Triton kernel that evicts for all layers against the rule in torch: to the bit, victim by victim."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from kvlite_kernels.backend import TORCH, Backend, LayerSizes
from tests.parity.compare import assert_parity
from tests.parity.eviction import CASES, D_V, HEADS, LAYERS, ROWS, Case, D, check, holding, pinned_to, scores
from tests.parity.poison import poison

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":  # tests/conftest.py sets it where there is no CUDA device
    pytest.skip("on a CUDA device these need TRITON_INTERPRET=1", allow_module_level=True)

from kvlite_kernels.triton_set.backend import TritonBackend
from kvlite_kernels.triton_set.tiles import INTERPRETER

__all__ = ["poison"]
pytestmark = pytest.mark.usefixtures("poison")
TRITON = TritonBackend([LayerSizes(HEADS, HEADS, 41, D, D_V)], ROWS, [torch.float32], torch.device("cpu"), INTERPRETER)


def after(case: Case) -> torch.Tensor:
    """The position after the newest of each row."""
    return torch.full((ROWS, 1, 1), case.seen + 1, dtype=torch.int32)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_token_that_waits_takes_the_slot_of_the_lowest(case: Case) -> None:
    slots = holding(case)
    check(TRITON, slots, case, scores(case), after(case))
    slots.pos[..., -1] = case.seen + 1  # and the next
    check(TRITON, slots, case, scores(case).flip(-1), after(case) + 1)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_codes_and_scales_move_as_they_are(bits: int) -> None:
    case = CASES["sinks and recent"]
    check(TRITON, holding(case, bits), case, scores(case), after(case))


def test_who_takes_a_slot_has_no_bias_yet() -> None:
    case = CASES["sinks and recent"]
    slots = holding(case)
    bias = torch.ones_like(slots.pos, dtype=torch.float16)
    bias[..., -1] = 0.0  # of what waits
    check(TRITON, replace(slots, bias=bias), case, scores(case), after(case))
    assert int((bias[..., : case.slots] == 0.0).sum()) == LAYERS * ROWS * HEADS


def test_padding_takes_no_slot() -> None:
    case = CASES["sinks and recent"]
    slots = holding(case)
    slots.pos[:, 0, :, -1] = -1
    before = slots.pos[:, 0].clone()
    check(TRITON, slots, case, scores(case), torch.tensor([0, case.seen + 1]).int().view(ROWS, 1, 1))
    assert_parity("positions", slots.pos[:, 0], before)


@pytest.mark.parametrize("row", range(ROWS))
def test_rows_that_are_not_fed_stay_as_they_are(row: int) -> None:
    case, rows = CASES["pins"], slice(row, row + 1)
    slots = holding(case)
    other = slots.pos[:, 1 - row].clone()
    check(TRITON, slots, pinned_to(case, rows), scores(case)[:, rows], after(case)[rows], rows)
    assert_parity("positions", slots.pos[:, 1 - row], other)


def test_one_layer_is_evicted_for_as_several_are() -> None:
    case = CASES["sinks and recent"]
    slots, score = holding(case), scores(case)
    expected = holding(case)
    TRITON.evict(expected, score, after(case), case.protection)
    for layer in range(LAYERS):
        TRITON.evict(slots[layer], score[layer], after(case), case.protection)
    for (name, tensor), (_, wanted) in zip(slots.tensors(), expected.tensors(), strict=True):
        assert_parity(name, tensor, wanted)


def test_scores_that_are_no_numbers_write_nothing_outside_the_slots() -> None:
    case = CASES["sinks and recent"]
    slots = holding(case)
    TRITON.evict(slots, torch.full_like(scores(case), torch.nan), after(case), case.protection)
    assert int(slots.pos.max()) == case.seen


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=["torch", "triton"])
def test_a_slot_whose_score_is_no_number_goes_first(backend: Backend) -> None:
    case = CASES["sinks and recent"]
    slots, score = holding(case), scores(case)
    at = int(slots.pos[0, 0, 0, : case.slots].eq(40).nonzero()) if (slots.pos[0, 0, 0] == 40).any() else 7
    slots.pos[..., at] = 40
    score[..., at] = torch.nan
    backend.evict(slots, score, after(case), case.protection)
    assert (slots.pos[..., at] == case.seen).all()


def test_a_policy_without_a_statistic_needs_none() -> None:
    case = CASES["ties"]
    check(TRITON, holding(case, has_statistic=False), case, scores(case), after(case))
