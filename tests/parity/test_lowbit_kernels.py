"""The Triton kernels over codes of 8, 6 and 4 bits against their torch twins: bit for bit, attention to rounding."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvlite_kernels import lowbit
from kvlite_kernels.backend import LayerSizes
from kvlite_kernels.kinds import Heads, Noise, Statistic
from kvlite_kernels.lowbit import Packed
from kvlite_kernels.reference import Segment, attend_segments
from kvlite_kernels.statistic import Observation
from tests.matrix import but_few
from tests.parity.compare import assert_parity
from tests.parity.poison import poison, surrounded
from tests.parity.test_attention_kernels import counted, scratch
from tests.parity.test_lowbit import DIMS, group_of, random
from tests.parity.test_reference import Case, problem, weights

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":  # tests/conftest.py sets it where there is no CUDA device
    pytest.skip("on a CUDA device these need TRITON_INTERPRET=1", allow_module_level=True)

from kvlite_kernels.triton_set.attention import attend_many, attend_one
from kvlite_kernels.triton_set.backend import TritonBackend
from kvlite_kernels.triton_set.tiles import INTERPRETER, Processor

__all__ = ["poison"]
pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.parametrize("bits", [8, 6, 4])]
quantise = TritonBackend([LayerSizes(2, 2, 41, 16, 16)], 2, [torch.float32], torch.device("cpu"), INTERPRETER).quantise
FP32 = Case(dtype=torch.float32, group=2, k_dim=16, v_dim=16)
CASES = {
    "one key": replace(FP32, keys=1),
    "no group, D 64": replace(FP32, rows=1, kv_heads=1, group=1, k_dim=64, v_dim=64, keys=63),
    "group of 7, D 80, sink logit": replace(FP32, group=7, k_dim=80, v_dim=80, sink=True, rows=1),
    "group of 16, D 96, same positions in all heads": replace(FP32, group=16, k_dim=96, v_dim=96, shared=True, rows=1),
    "111 keys, D 128, values narrower": replace(FP32, keys=111, k_dim=128, v_dim=64, rows=1),
    "D 192 and 128, softcap": replace(FP32, k_dim=192, v_dim=128, softcap=3.0, rows=1, kv_heads=1),
    "D 256, window": replace(FP32, k_dim=256, v_dim=256, window=6, rows=1, kv_heads=1),
    "dimensions of no multiple": replace(FP32, k_dim=24, v_dim=5, window=9),
    "fp16": replace(FP32, dtype=torch.float16, k_dim=64, v_dim=80, keys=40),
}


def coded(x: Tensor, bits: int) -> Packed:
    return lowbit.quantise(x.float(), bits, group_of(x.shape[-1]))


def coded_pair(k: Tensor, v: Tensor, bits: int) -> tuple[Packed, Packed]:
    """Keys in `bits` and values in as many, in 4 beside keys in 6."""
    return coded(k, bits), coded(v, 4 if bits == 6 else bits)


def inside(packed: Packed, pos: Tensor | None = None) -> Packed:
    """The same between poisoned slots, and with no number for the scales of free ones."""
    around = Packed(surrounded(packed.codes), surrounded(packed.scale), packed.dim)
    if pos is not None:
        around.scale.masked_fill_((pos < 0)[..., None], torch.nan)
    return around


def tolerances(case: Case) -> tuple[float, float]:
    """Of outputs and of statistics; in fp16, what is widened is rounded to it, and so are probabilities."""
    return (4e-6, 1e-5) if case.dtype == torch.float32 else (4e-3, 4e-3)


def segments_of(case: Case, bits: int, queries: int) -> tuple[Tensor, Tensor, list[Segment], list[Segment]]:
    """Queries, their positions, and slots and chunk, as the twin and as the kernels get them."""
    q, q_pos, held = problem(replace(case, queries=queries))
    k, v = coded_pair(held.k, held.v, bits)
    fresh = (random(case.rows, case.kv_heads, queries, dim) for dim in (case.k_dim, case.v_dim))
    new = Segment(*coded_pair(*fresh, bits), q_pos[:, None])
    pos = held.pos.expand(-1, case.kv_heads, -1)
    poisoned = Segment(inside(k, pos), inside(v, pos), surrounded(held.pos))
    return q, q_pos, [Segment(k, v, held.pos), new], [poisoned, new]


def same_codes(name: str, actual: Packed, expected: Packed) -> None:
    assert torch.equal(actual.codes, expected.codes), f"codes of {name}"
    is_none = expected.scale.isnan()
    assert torch.equal(actual.scale.isnan(), is_none), f"scales of {name} that are no number"
    assert torch.equal(actual.scale[~is_none], expected.scale[~is_none]), f"scales of {name}"


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("tokens", but_few([1, 37], 1))
def test_codes_and_scales_are_those_of_the_twin(bits: int, dim: int, tokens: int) -> None:
    magnitudes = 10.0 ** torch.linspace(-9, 9, tokens)[:, None]
    for x in (
        random(2, 3, tokens, dim) * magnitudes,
        random(2, 3, tokens, dim).round(),
        -random(2, 3, tokens, dim).abs(),
    ):
        same_codes(f"D {dim}", quantise(x, bits, group_of(dim)), lowbit.quantise(x, bits, group_of(dim)))


def test_halves_round_to_even_and_the_first_of_two_largest_gives_the_sign(bits: int) -> None:
    levels = 2 ** (bits - 1)
    halves = torch.arange(-levels, levels).float() + 0.5
    x = torch.stack([halves, halves, halves, halves.flip(0)], -1)
    x[:, 0], x[:, 3] = -levels, levels
    for each in (x, x.flip(-1)):
        same_codes("halves", quantise(each, bits, 4), lowbit.quantise(each, bits, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38, 1e-40, 0.0])
def test_what_has_no_code_is_what_it_is_in_the_twin(bits: int, bad: float) -> None:
    x = random(3, 80)
    x[1, 17], x[2, 16:32] = bad, bad
    same_codes(str(bad), quantise(x, bits, 16), lowbit.quantise(x, bits, 16))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_decode_equals_its_twin(bits: int, case: Case) -> None:
    q, q_pos, (held, _), (poisoned, _) = segments_of(case, bits, 1)
    observation = Observation(Statistic.MASS, weights(q_pos).float())
    expected, masses = attend_segments(q, q_pos, [held], case.geometry, observation)
    poisoned, mass = counted(poisoned)
    out = attend_one(surrounded(q), q_pos, poisoned, case.geometry, scratch(case), observation)
    assert out.dtype == torch.float32
    assert_parity("out", out, expected.float(), tolerances(case)[0])
    assert_parity("mass", mass, masses[0], tolerances(case)[1])


def test_decode_does_not_depend_on_how_the_keys_are_split(bits: int) -> None:
    case = replace(FP32, keys=300, k_dim=64, v_dim=64, rows=1, kv_heads=1)
    q, q_pos, (held, _), (poisoned, _) = segments_of(case, bits, 1)
    expected, _ = attend_segments(q, q_pos, [held], case.geometry, None)
    for processors in (1, 64):
        parted = scratch(case, Processor(0, processors))
        assert_parity("out", attend_one(q, q_pos, poisoned, case.geometry, parted, None), expected, 4e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_prefill_over_slots_and_chunk_equals_its_twin(bits: int, case: Case) -> None:
    q, q_pos, segments, poisoned = segments_of(case, bits, 5)
    observation = Observation(Statistic.MASS, weights(q_pos).float())
    expected, masses = attend_segments(q, q_pos, segments, case.geometry, observation)
    out, _, sums = attend_many(surrounded(q), q_pos, poisoned, case.geometry, INTERPRETER.capability, observation)
    assert out.dtype == torch.float32
    assert_parity("out", out, expected.float(), tolerances(case)[0])
    for name, actual, mass in zip(("slots", "chunk"), sums, masses, strict=True):
        assert_parity(f"mass of the {name}", actual, mass, 4 * tolerances(case)[1])


OBSERVATIONS = [(Statistic.MASS, "max"), (Statistic.BELOW, "mean"), (Statistic.GUMBEL, "max")]


@pytest.mark.parametrize(("kind", "heads"), but_few(OBSERVATIONS, OBSERVATIONS[0]))
def test_every_statistic_equals_its_twin(bits: int, kind: Statistic, heads: Heads) -> None:
    case = replace(FP32, window=9, sink=True)
    q, q_pos, segments, poisoned = segments_of(case, bits, 5)
    observation = Observation(kind, weights(q_pos).float(), None, heads, Noise(7, 1.0, 2.0, 50, layer=3))
    _, expected = attend_segments(q, q_pos, segments, case.geometry, observation)
    _, _, sums = attend_many(q, q_pos, poisoned, case.geometry, 0, observation)
    assert_parity("of a chunk", torch.cat(sums, -1), torch.cat(expected, -1), 1e-5)
    last, q, q_pos = replace(observation, weight=observation.weight[:, -1:]), q[:, :, -1:], q_pos[:, -1:]
    _, expected = attend_segments(q, q_pos, segments[:1], case.geometry, last)
    held, one = counted(poisoned[0])
    attend_one(q, q_pos, held, case.geometry, scratch(case), last)
    assert_parity("of one query", one, expected[0], 1e-5)
