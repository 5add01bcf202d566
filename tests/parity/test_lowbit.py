"""Low-bit vectors against the formulas: the rotation, the rounding, the layout, and attention over codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvlite_kernels import reference
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.lowbit import MAX_SCALE, Packed, hadamard, quantise
from kvlite_kernels.reference import Geometry, Segment, attend_segments
from kvlite_kernels.statistic import Observation
from tests.parity.compare import assert_parity

DIMS = (1, 2, 5, 6, 8, 64, 80, 96, 128, 192, 256)


def group_of(dim: int) -> int:
    return min(32, dim & -dim)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", DIMS)
def test_the_rotation_is_hadamards_in_blocks_of_a_power_of_two(dim: int) -> None:
    block = max(size for size in (2**n for n in range(9)) if dim % size == 0)
    expected = torch.zeros(dim, dim, dtype=torch.float64)
    for i in range(dim):
        for j in range(i // block * block, i // block * block + block):
            expected[i, j] = (-1) ** (i % block & j % block).bit_count() / block**0.5
    assert_parity("rotated", hadamard(torch.eye(dim, dtype=torch.float64)), expected)


@pytest.mark.parametrize("dim", DIMS)
def test_rotating_twice_gives_the_vector_back(dim: int) -> None:
    x = random(2, 3, dim)
    assert_parity("x", hadamard(hadamard(x)), x)


@given(st.sampled_from(DIMS), st.sampled_from((8, 6, 4)), st.floats(-3, 4), st.integers(0, 10**6))
def test_a_channel_is_off_by_at_most_half_a_step_unless_it_opposes_the_largest(
    dim: int, bits: int, magnitude: float, seed: int
) -> None:
    x = random(4, 3, dim, seed=seed) * 10**magnitude
    packed = quantise(x, bits, group_of(dim))
    steps = packed.scale.float().repeat_interleave(group_of(dim), -1)
    # The scale is rounded too, to 11 bits or 2^-24, so that the largest channel may lie a little beyond the last code;
    # one nearly as large of the other sign has no code of its own and lies up to a step off.
    levels = 2 ** (bits - 1)
    is_opposed = (x / steps) > levels - 1.5
    allowed = steps.abs() * (0.5 + 0.5 * is_opposed + levels * 2.0**-11) + levels * 2.0**-25
    assert ((packed.to(torch.float32) - x).abs() <= allowed).all()


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_numbers_that_are_codes_come_back_exactly(dim: int, bits: int) -> None:
    levels = 2 ** (bits - 1)
    x = torch.arange(6 * dim).view(2, 3, dim).remainder(2 * levels).float() - levels
    x[..., :: group_of(dim)] = -levels  # so that every group's scale is 1
    x[1] *= -1  # and -1
    packed = quantise(x, bits, group_of(dim))
    assert torch.equal(packed.to(torch.float32), x)
    assert packed.shape == x.shape and packed[:, 1:].shape == x[:, 1:].shape


@pytest.mark.parametrize("dim", [5, 8, 80])
def test_a_byte_of_four_bits_holds_a_channel_and_the_one_half_a_vector_on(dim: int) -> None:
    x = torch.arange(dim).remainder(8).float()[None] - 4
    x[..., :: group_of(dim)] = -8  # so that every group's scale is 1
    half = -(-dim // 2)
    codes = quantise(x, 4, group_of(dim)).codes.long()
    assert codes.shape == (1, half)
    assert torch.equal((codes & 15) - 8, x[:, :half].long())
    assert torch.equal(((codes >> 4) - 8)[:, : dim - half], x[:, half:].long())


@pytest.mark.parametrize("dim", [5, 8, 80])
def test_six_bits_are_four_bits_and_behind_them_the_high_two_of_each(dim: int) -> None:
    x = torch.arange(dim).mul(7).remainder(32).float()[None] - 16
    x[..., :: group_of(dim)] = -32  # so that every group's scale is 1
    half = -(-dim // 2)
    codes = quantise(x, 6, group_of(dim)).codes.long()
    assert codes.shape == (1, half + -(-half // 2))
    for channel in range(dim):
        byte, place = channel % half, channel // half
        low = codes[0, byte] >> 4 * place & 15
        high = codes[0, half + byte // 2] >> 4 * (byte % 2) + 2 * place & 3
        assert low + 16 * high - 32 == x[0, channel]


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_numbers_beyond_what_a_scale_holds_saturate_and_vanish(bits: int) -> None:
    levels = 2 ** (bits - 1)
    x = torch.tensor([[-1e9, 1e9, 1.0, 0.0], [1e-12, -1e-12, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    back = quantise(x, bits, 4).to(torch.float32)
    assert_parity("saturated", back[0], torch.tensor([-levels, levels - 1.0, 0.0, 0.0]) * MAX_SCALE)
    assert not back[1:].any()


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so_and_spoils_no_other_group(bits: int, bad: float) -> None:
    x = random(3, 8)
    x[1, 2] = bad
    back = quantise(x, bits, 4).to(torch.float32)
    assert back[1, :4].isnan().all()
    assert back[1, 4:].isfinite().all() and back[[0, 2]].isfinite().all()


@pytest.mark.parametrize("tile", [1, 200, 1 << 22])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_attention_over_codes_is_attention_over_what_they_stand_for(
    bits: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = hadamard(random(2, 6, 5, 24)), random(2, 3, 21, 24, seed=1), random(2, 3, 21, 40, seed=2)
    pos = torch.arange(21).int().expand(2, 3, -1)
    q_pos = torch.arange(16, 21).int().expand(2, -1)
    observation, geometry = Observation(Statistic.MASS, torch.ones(2, 5)), Geometry(24**-0.5, window=9, softcap=30.0)
    packed = [quantise(hadamard(x), bits, 8) for x in (k, v)]
    wide = [hadamard(part.to(torch.float32)) for part in packed]
    expected, (mass,) = attend_segments(hadamard(q), q_pos, [Segment(*wide, pos)], geometry, observation)
    monkeypatch.setattr(reference, "TILE_ELEMENTS", tile)
    out, (held,) = attend_segments(q, q_pos, [Segment(*packed, pos)], geometry, observation)
    assert_parity("out", hadamard(out), expected, 1e-5)
    assert_parity("mass", held, mass, 1e-5)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_codes_are_widened_without_touching_them(bits: int) -> None:
    packed = quantise(random(1, 2, 3, 8), bits, 8)
    before = packed.codes.clone(), packed.scale.clone()
    packed.to(torch.float32)
    assert torch.equal(packed.codes, before[0]) and torch.equal(packed.scale, before[1])
    assert isinstance(packed[:, :, 1:], Packed)
