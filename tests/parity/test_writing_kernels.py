"""The Triton kernels that write slots against their torch twins: where new tokens go, and who goes for them."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvlite.cache.store import put
from kvlite_kernels.kinds import Rank, Statistic
from kvlite_kernels.ranking import priority, score
from kvlite_kernels.reference import Geometry, Segment, attend_segments, evict
from kvlite_kernels.slots import Arriving, Held, Ranking
from kvlite_kernels.statistic import Measure
from tests.parity.compare import assert_parity
from tests.parity.poison import poison, surrounded

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":  # tests/conftest.py sets it where there is no CUDA device
    pytest.skip("on a CUDA device these need TRITON_INTERPRET=1", allow_module_level=True)

from kvlite_kernels.triton_set.attention import attend_one
from kvlite_kernels.triton_set.scratch import Scratch
from kvlite_kernels.triton_set.tiles import INTERPRETER
from kvlite_kernels.triton_set.writing import insert, move

__all__ = ["poison"]
pytestmark = pytest.mark.usefixtures("poison")
ROWS, HEADS, GROUP, D, D_V = 2, 2, 2, 24, 16


def holding(slots: int, live: int, statistic: bool = True) -> Held:
    """`live` tokens in each head of S slots, in no order, the rest free; whatever waits behind them is garbage."""
    generator = torch.Generator().manual_seed(slots)
    order = torch.rand(ROWS, HEADS, slots, generator=generator).argsort(-1)
    pos = torch.full((ROWS, HEADS, slots + 1), -1, dtype=torch.int32)
    pos[..., :live] = order[..., :live].int()
    k, v = (torch.randn(ROWS, HEADS, slots + 1, dim, generator=generator) for dim in (D, D_V))
    mass = torch.rand(ROWS, HEADS, slots + 1, generator=generator) if statistic else None
    return Held(
        surrounded(k), surrounded(v), surrounded(pos), surrounded(pos + 1), None if mass is None else surrounded(mass)
    )


def arriving(tokens: int, first: int, statistic: bool = True) -> Arriving:
    """Tokens from position `first` on; the last row begins with padding."""
    generator = torch.Generator().manual_seed(tokens)
    k, v = (torch.randn(ROWS, tokens, HEADS, dim, generator=generator).transpose(1, 2) for dim in (D, D_V))
    pos = (torch.arange(tokens) + first).int().repeat(ROWS, 1)
    pos[-1, : tokens // 2] = -1
    mass = torch.rand(ROWS, HEADS, tokens, generator=generator) if statistic else None
    return Arriving(k, v, pos, torch.where(pos < 0, -1, pos + 1), mass)


def tensors(held: Held) -> dict[str, Tensor]:
    every = {"k": held.k, "v": held.v, "pos": held.pos, "rot": held.rot, "statistic": held.statistic}
    return {name: tensor for name, tensor in every.items() if tensor is not None}


def copied(held: Held) -> Held:
    statistic = None if held.statistic is None else held.statistic.clone()
    return Held(held.k.clone(), held.v.clone(), held.pos.clone(), held.rot.clone(), statistic)


def put_all(held: Held, new: Arriving, index: Tensor | slice) -> None:
    """The twin of `insert`."""
    rows = slice(0, ROWS)
    if isinstance(index, Tensor):
        starts = held.pos.shape[-1] * torch.arange(ROWS * HEADS).view(ROWS, HEADS, 1)
        index = (index + starts).flatten()
    for name, value in (("k", new.k), ("v", new.v), ("pos", new.pos[:, None]), ("rot", new.rot[:, None])):
        put(tensors(held)[name], rows, index, value)
    if held.statistic is not None:
        known = torch.zeros(ROWS, HEADS, new.pos.shape[1]) if new.statistic is None else new.statistic
        put(held.statistic, rows, index, known)


@pytest.mark.parametrize("tokens", [1, 5, 37])
@pytest.mark.parametrize("statistic", [True, False])
def test_insert_writes_what_is_kept_and_nothing_else(tokens: int, statistic: bool) -> None:
    held, new = holding(40, 9, statistic), arriving(tokens, 50, statistic)
    generator = torch.Generator().manual_seed(3)
    index = torch.rand(ROWS, HEADS, 40, generator=generator).argsort(-1)[..., :tokens]
    index[..., tokens // 2] = 40
    expected = copied(held)
    put_all(expected, new, index)
    insert(held, new, index)
    for name, tensor in tensors(held).items():
        assert_parity(name, tensor[:, :, :40], tensors(expected)[name][:, :, :40], 0.0)


def test_insert_takes_a_run_of_slots_and_one_index_for_all_heads() -> None:
    held, new = holding(40, 9), replace(arriving(6, 50), statistic=None)
    expected = copied(held)
    for index in (slice(11, 17), torch.arange(20, 26).expand(ROWS, 1, -1)):
        put_all(expected, new, index)
        insert(held, new, index)
    for name, tensor in tensors(held).items():
        assert_parity(name, tensor, tensors(expected)[name], 0.0)


PINS = torch.tensor([[[3, 30], [0, 0]], [[0, 33], [35, 37]]]).int()
RANKINGS = {
    "statistic": (Ranking(Rank("statistic"), 5, 2, 40), 40, None),
    "mass per token of age": (Ranking(Rank("age", 16), 5, 2, 40), 40, None),
    "position": (Ranking(Rank("position"), 1, 4, 40), 40, None),
    "pins": (
        Ranking(Rank("statistic"), 5, 0, 40, pins=torch.tensor([[[3, 30], [0, 0]], [[0, 33], [35, 37]]]).int()),
        40,
        None,
    ),
    "window, expired first": (Ranking(Rank("age", 16), 5, 2, 40), 40, 30),
    "everything protected": (Ranking(Rank("statistic"), 60, 0, 40), 40, None),
    "free slots": (Ranking(Rank("statistic"), 5, 2, 40), 31, None),
    "several tiles and parts": (Ranking(Rank("age", 1024), 100, 4, 1500), 1500, None),
}


@pytest.mark.parametrize(("ranking", "live", "window"), RANKINGS.values(), ids=RANKINGS)
def test_a_decoded_token_takes_the_slot_of_the_lowest(ranking: Ranking, live: int, window: int | None) -> None:
    held = holding(ranking.slots, live, ranking.rank.by != "position")
    geometry = Geometry(D**-0.5, window)
    new = replace(arriving(1, ranking.slots), statistic=None)
    new.pos[-1], new.rot[-1] = new.pos[0] + 1, new.rot[0] + 1
    check_decode(held, new, geometry, ranking)


def test_padding_takes_no_slot() -> None:
    new = replace(arriving(1, 40), statistic=None)
    new.pos[-1] = -1
    held = holding(40, 40)
    before = held.pos[-1, :, :40].clone()
    check_decode(held, new, Geometry(D**-0.5), Ranking(Rank("statistic"), 5, 2, 40))
    assert_parity("positions", held.pos[-1, :, :40], before)


def check_decode(held: Held, new: Arriving, geometry: Geometry, ranking: Ranking) -> None:
    """insert, attend_one and move leave what the twins leave, and attend as they do."""
    q = 2 * torch.randn(ROWS, HEADS * GROUP, 1, D, generator=torch.Generator().manual_seed(5))
    weight = (new.pos >= 0).float()
    expected, waiting = copied(held), slice(ranking.slots, ranking.slots + 1)
    put_all(expected, new, waiting)
    segment = Segment(expected.k, expected.v, expected.pos)
    out, masses = attend_segments(q, new.pos, [segment], geometry, Measure(Statistic.MASS, weight))
    if expected.statistic is not None:
        expected.statistic.add_(masses[0])
    pos, next_pos = expected.pos[..., : ranking.slots], new.pos[:, :, None] + 1
    known = None if expected.statistic is None else expected.statistic[..., : ranking.slots]
    rank = priority(score(ranking.rank, known, pos, next_pos), pos, next_pos, ranking, geometry.window)
    new_pos = new.pos[:, None].expand(-1, HEADS, -1)
    arrival = torch.where(new_pos >= 0, torch.inf, -torch.inf)
    index = evict(rank, pos, arrival, new_pos)
    known = None if expected.statistic is None else expected.statistic[..., waiting].clone()
    put_all(expected, replace(new, statistic=known), index)

    scratch = Scratch(ROWS, HEADS * GROUP, GROUP, ranking.slots + 1, D_V, INTERPRETER, torch.device("cpu"))
    insert(held, new, slice(ranking.slots, ranking.slots + 1))
    asked = None if held.statistic is None else Measure(Statistic.MASS, weight)
    segment = Segment(held.k, held.v, held.pos)
    actual, _, parts = attend_one(q, new.pos, segment, geometry, scratch, asked, held.statistic, None, ranking)
    move(held, scratch, parts)
    assert_parity("out", actual, out, 4e-6)
    for name, tensor in tensors(held).items():
        here, there = (x[:, :, : ranking.slots] for x in (tensor, tensors(expected)[name]))
        assert_parity(name, here, there, 1e-5 if name == "statistic" else 0.0)
