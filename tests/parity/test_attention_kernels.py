"""The Triton kernels of attention and its statistics against their torch twins, in Triton's interpreter."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kvlite_kernels.backend import LayerSizes
from kvlite_kernels.echo import heard
from kvlite_kernels.kinds import Heads, Noise, Statistic
from kvlite_kernels.reference import Segment, attend, attend_segments
from kvlite_kernels.statistic import Observation
from tests.parity.compare import TOLERANCES, assert_parity
from tests.parity.poison import poison, surrounded
from tests.parity.test_reference import Case, problem, split, weights

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":  # tests/conftest.py sets it where there is no CUDA device
    pytest.skip("on a CUDA device these need TRITON_INTERPRET=1", allow_module_level=True)

from kvlite_kernels.triton_set.attention import attend_many, attend_one
from kvlite_kernels.triton_set.scratch import Scratch
from kvlite_kernels.triton_set.tiles import INTERPRETER, Processor

__all__ = ["poison"]
pytestmark = pytest.mark.usefixtures("poison")
FP32 = Case(dtype=torch.float32, group=2)
HALF = {torch.float16: 4e-3}  # two roundings: of probabilities, and of the output; the interpreter has no bf16 products

CASES = {
    "plain": FP32,
    "one key": replace(FP32, keys=1),
    "one head, no group": replace(FP32, rows=1, kv_heads=1, group=1),
    "group of 7, D 80, sink logit": replace(FP32, group=7, k_dim=80, v_dim=80, sink=True, rows=1),
    "group of 16, same positions in all heads": replace(FP32, group=16, shared=True, rows=1),
    "111 keys, values narrower": replace(FP32, keys=111, k_dim=96, v_dim=64, rows=1),
    "D 192 and 128, softcap": replace(FP32, k_dim=192, v_dim=128, softcap=3.0, rows=1, kv_heads=1),
    "window, softcap, sink logit": replace(FP32, window=6, softcap=1.5, sink=True),
    "window of one": replace(FP32, window=1),
    "fp16": replace(FP32, dtype=torch.float16, k_dim=64, v_dim=64, keys=40),
    "fp16, D 256": replace(FP32, dtype=torch.float16, k_dim=256, v_dim=256, kv_heads=1),
}


@dataclass(frozen=True)
class Problem:
    """Queries and keys between poisoned memory, with one weight a query."""

    q: Tensor
    q_pos: Tensor
    segment: Segment
    weight: Tensor


def poisoned_problem(case: Case) -> Problem:
    q, q_pos, segment = problem(case)
    around = Segment(surrounded(segment.k), surrounded(segment.v), surrounded(segment.pos))
    return Problem(surrounded(q), q_pos, around, weights(q_pos).float())


def mass_by(weight: Tensor) -> Observation:
    return Observation(Statistic.MASS, weight)


def counted(segment: Segment) -> tuple[Segment, Tensor]:
    """The segment with a statistic of zeros, and that."""
    statistic = surrounded(torch.zeros(*segment.k.shape[:3]))
    return replace(segment, statistic=statistic), statistic


def scratch(case: Case, processor: Processor = INTERPRETER) -> Scratch:
    layer = LayerSizes(case.kv_heads * case.group, case.kv_heads, case.keys, case.k_dim, case.v_dim)
    return Scratch([layer], case.rows, processor, torch.device("cpu"))


def tolerances(case: Case) -> tuple[float, float]:
    """Of outputs, and of statistics, which are fp32 whatever the slots hold."""
    return HALF.get(case.dtype, 4e-6), 1e-5 if case.dtype == torch.float32 else TOLERANCES[case.dtype]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_decode_equals_its_twin(case: Case) -> None:
    given = poisoned_problem(replace(case, queries=3))
    q, q_pos, weight = given.q[:, :, -1:], given.q_pos[:, -1:], given.weight[:, -1:]
    expected, masses = attend_segments(q, q_pos, [given.segment], case.geometry, mass_by(weight))
    held, mass = counted(given.segment)
    out = attend_one(q, q_pos, held, case.geometry, scratch(case), mass_by(weight))
    assert_parity("out", out, expected, tolerances(case)[0])
    assert_parity("mass", mass, masses[0], tolerances(case)[1])


@pytest.mark.parametrize("processors", [1, 64])
def test_decode_does_not_depend_on_how_the_keys_are_split(processors: int) -> None:
    case = replace(FP32, keys=300, sink=True, rows=1, kv_heads=1)
    given = poisoned_problem(replace(case, queries=1))
    expected, masses = attend_segments(given.q, given.q_pos, [given.segment], case.geometry, mass_by(given.weight))
    parted = scratch(case, Processor(0, processors))
    held, mass = counted(given.segment)
    out = attend_one(given.q, given.q_pos, held, case.geometry, parted, mass_by(given.weight))
    assert parted.splits(1, case.keys, 32)[0] == (3 if processors == 1 else 10)
    assert_parity("out", out, expected, 4e-6)
    assert_parity("mass", mass, masses[0], 1e-5)


@pytest.mark.parametrize("dim", [16, 80, 128])
@pytest.mark.parametrize("is_observed", [False, True])
def test_channels_are_joined_by_as_many_programs_as_they_take(dim: int, is_observed: bool) -> None:
    case = replace(FP32, keys=600, k_dim=dim, v_dim=dim, rows=1, kv_heads=1, queries=1)
    given = poisoned_problem(case)
    observation = mass_by(given.weight) if is_observed else None
    expected, masses = attend_segments(given.q, given.q_pos, [given.segment], case.geometry, observation)
    held, mass = counted(given.segment)
    out = attend_one(given.q, given.q_pos, held, case.geometry, scratch(case, Processor(0, 64)), observation)
    assert_parity("out", out, expected, 4e-6)
    if masses:
        assert_parity("mass", mass, masses[0], 1e-5)


def test_decode_adds_to_what_stays_of_the_statistic_in_place() -> None:
    given = poisoned_problem(replace(FP32, queries=1))
    _, masses = attend_segments(given.q, given.q_pos, [given.segment], FP32.geometry, mass_by(given.weight))
    mass = surrounded(torch.rand(FP32.rows, FP32.kv_heads, FP32.keys))
    stays = torch.tensor([0.5, 0.25])[:, None, None]
    expected = mass * stays + masses[0]
    held = replace(given.segment, statistic=mass)
    asked = replace(mass_by(given.weight), retention=stays)
    attend_one(given.q, given.q_pos, held, FP32.geometry, scratch(FP32), asked)
    assert_parity("mass", mass, expected, 1e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_prefill_over_slots_and_chunk_equals_its_twin(case: Case) -> None:
    given = poisoned_problem(case)
    new = chunk(case, given.q_pos)
    segments = [given.segment, new]
    expected, masses = attend_segments(given.q, given.q_pos, segments, case.geometry, mass_by(given.weight))
    asked = mass_by(given.weight)
    out, _, sums = attend_many(given.q, given.q_pos, segments, case.geometry, INTERPRETER.capability, asked)
    assert_parity("out", out, expected, tolerances(case)[0])
    for name, actual, mass in zip(("slots", "chunk"), sums, masses, strict=True):
        assert_parity(f"mass of the {name}", actual, mass, 4 * tolerances(case)[1])


def test_prefill_gives_the_log_of_the_sum_and_nothing_where_nothing_is_seen() -> None:
    given = poisoned_problem(FP32)
    expected = attend(given.q, given.q_pos, given.segment, FP32.geometry)
    out, lse, sums = attend_many(given.q, given.q_pos, [given.segment], FP32.geometry, 0, None)
    assert sums == []
    assert_parity("lse", lse, expected.lse, 4e-6)
    assert_parity("out", out, expected.out, 4e-6)


def test_prefill_of_several_tiles_passes_over_what_no_query_of_a_tile_sees() -> None:
    case = replace(FP32, queries=150, keys=40, rows=1, kv_heads=1)
    given = poisoned_problem(case)
    segments = [given.segment, chunk(case, given.q_pos)]
    expected, masses = attend_segments(given.q, given.q_pos, segments, case.geometry, mass_by(given.weight))
    out, _, sums = attend_many(given.q, given.q_pos, segments, case.geometry, 0, mass_by(given.weight))
    assert_parity("out", out, expected, 4e-6)
    assert_parity("mass", torch.cat(sums, -1), torch.cat(masses, -1), 1e-4)


def test_column_sums_start_at_the_first_query_that_counts() -> None:
    given = poisoned_problem(replace(FP32, queries=9))
    late = given.weight * (torch.arange(9) >= 6)
    segments = split(given.segment, 8)
    segments[1] = chunk(replace(FP32, queries=9), given.q_pos)
    _, masses = attend_segments(given.q, given.q_pos, segments, FP32.geometry, mass_by(late))
    asked = Observation(Statistic.MASS, late, queries=3)
    _, _, sums = attend_many(given.q, given.q_pos, segments, FP32.geometry, 0, asked)
    assert_parity("mass", torch.cat(sums, -1), torch.cat(masses, -1), 1e-5)


def chunk(case: Case, q_pos: Tensor) -> Segment:
    """The keys of the queries themselves, strided as a model's are."""
    generator = torch.Generator().manual_seed(1)

    def new(dim: int) -> Tensor:
        shape = (case.rows, q_pos.shape[1], case.kv_heads, dim)
        return torch.randn(*shape, generator=generator).to(case.dtype).transpose(1, 2)

    return Segment(new(case.k_dim), new(case.v_dim), q_pos[:, None])


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("has_room", [False, True])
def test_queries_that_come_again_give_keys_what_the_twin_does(window: int | None, has_room: bool) -> None:
    case = replace(FP32, window=window, queries=9, sink=True)
    given = poisoned_problem(case)
    new = chunk(case, given.q_pos)
    segments = [given.segment] if has_room else [given.segment, new]
    q_pos = torch.where(given.q_pos >= 0, given.q_pos + 3, -1)
    observation = Observation(Statistic.MASS, given.weight)
    expected = heard(given.q, q_pos, segments, case.geometry, observation)
    _, _, sums = attend_many(given.q, q_pos, segments, case.geometry, 0, observation, are_last=False)
    assert len(sums) == 1
    assert_parity("of the last segment", sums[0], expected, 1e-5)


def test_a_bias_of_slots_counts_as_in_the_twin() -> None:
    given = poisoned_problem(replace(FP32, queries=9, sink=True))
    bias = surrounded(torch.rand(given.segment.pos.shape).half())
    segments = [replace(given.segment, bias=bias), chunk(FP32, given.q_pos)]
    geometry, last = replace(FP32, sink=True).geometry, slice(-1, None)
    expected, _ = attend_segments(given.q, given.q_pos, segments, geometry, None)
    out, _, _ = attend_many(given.q, given.q_pos, segments, geometry, 0, None)
    assert_parity("out of a chunk", out, expected, 4e-6)
    q, q_pos = given.q[:, :, last], given.q_pos[:, last]
    expected, _ = attend_segments(q, q_pos, segments[:1], geometry, None)
    assert_parity("out of one", attend_one(q, q_pos, segments[0], geometry, scratch(FP32), None), expected, 4e-6)
    observation, after = Observation(Statistic.MASS, given.weight), given.q_pos + 3
    for some in (segments[:1], segments):
        wanted = heard(given.q, after, some, geometry, observation)
        _, _, sums = attend_many(given.q, after, some, geometry, 0, observation, are_last=False)
        assert_parity("heard", sums[0], wanted, 1e-5)


OBSERVATIONS = [
    (Statistic.MASS, "max"),
    (Statistic.MASS, "layer"),
    (Statistic.BELOW, "mean"),
    (Statistic.GUMBEL, "mean"),
    (Statistic.GUMBEL, "max"),
]


@pytest.mark.parametrize(("kind", "heads"), OBSERVATIONS)
def test_every_statistic_equals_its_twin(kind: Statistic, heads: Heads) -> None:
    case = replace(FP32, window=9, sink=True)
    given = poisoned_problem(case)
    segments = [given.segment, chunk(case, given.q_pos)]
    observation = Observation(kind, given.weight, None, heads, Noise(2**32 - 7, 1.0, 2.0, 50, layer=3))
    _, expected = attend_segments(given.q, given.q_pos, segments, case.geometry, observation)
    _, _, sums = attend_many(given.q, given.q_pos, segments, case.geometry, 0, observation)
    assert_parity("of a chunk", torch.cat(sums, -1), torch.cat(expected, -1), 1e-5)
    last = replace(observation, weight=given.weight[:, -1:])
    q, q_pos = given.q[:, :, -1:], given.q_pos[:, -1:]
    _, expected = attend_segments(q, q_pos, [given.segment], case.geometry, last)
    held, one = counted(given.segment)
    attend_one(q, q_pos, held, case.geometry, scratch(case), last)
    assert_parity("of one query", one, expected[0], 1e-5)
