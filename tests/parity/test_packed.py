"""Packed weights: rounded as near as said, unpacked as the kernels read them, and views of one when joined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvlite_kernels import packed
from kvlite_kernels.grid import GROUP, round_to_grid
from kvlite_kernels.packed import Packed4, Packed8

KINDS = (Packed4, Packed8)
SHAPES = [(64, 32), (192, 96), (320, 64)]


def matrix(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_few_and_many_rows_are_multiplied_with_the_same_weights(kind: type, outputs: int, inputs: int) -> None:
    weights, bias = kind.of(matrix(outputs, inputs)), matrix(1, outputs, 1)[0].bfloat16()
    held = weights.unpack(0, outputs).float()  # [K, N]
    assert torch.equal(weights.unpack(64, outputs).float(), held[:, 64:])
    for rows in (1, 3, weights.most_rows, weights.most_rows + 1):
        x = matrix(rows, inputs, 2).bfloat16()
        exact = x.float() @ held + bias.float()
        off = packed.multiply(x, weights, bias).float() - exact
        assert float(off.norm() / exact.norm()) < 0.005
    exact = x[:2].float() @ held
    assert torch.allclose(packed.multiply(x[:2].float(), weights, None), exact, rtol=0, atol=0.05)


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_a_group_that_is_on_a_grid_is_kept(seed: int, scale: float, offset: float) -> None:
    step = float(torch.tensor(scale).bfloat16())
    steps = torch.randint(0, 16, (1, GROUP), generator=torch.Generator().manual_seed(seed))
    steps[0, :2] = torch.tensor([0, 15])  # the group spans its grid
    wanted = (steps - 8) * step + float(torch.tensor(offset * step).bfloat16())
    codes, grid = round_to_grid(wanted)
    found = (codes.float() - 8) * grid[..., 0].float() + grid[..., 1].float()
    assert float((found - wanted).abs().max()) <= 0.1 * step + 0.01 * float(wanted.abs().max())


def test_rounding_is_nearer_than_that_to_the_ends_of_each_group() -> None:
    weight = matrix(64, 256)
    groups = weight.unflatten(-1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / 15
    plain = (groups - low).div(scale).round() * scale + low
    codes, grid = round_to_grid(weight)
    found = (codes.unflatten(-1, (-1, GROUP)).float() - 8) * grid[..., :1].float() + grid[..., 1:].float()
    assert (found - groups).square().mean() < 0.9 * (plain - groups).square().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_number_and_of_zeros_are_kept(kind: type) -> None:
    weight = torch.zeros(64, 64)
    weight[1] = 0.5
    assert torch.allclose(kind.of(weight).unpack(0, 64).T.float(), weight, atol=0.002)


@pytest.mark.parametrize("kind", KINDS)
def test_joined_weights_stay_what_they_were_and_lie_in_one_place(kind: type) -> None:
    parts = [kind.of(matrix(outputs, 64, outputs)) for outputs in (64, 128)]
    joined, views = kind.join(parts)
    x = matrix(3, 64).bfloat16()
    expected = [packed.multiply(x, part, None) for part in parts]
    assert torch.equal(packed.multiply(x, joined, None), torch.cat(expected, 1))
    for view, part in zip(views, expected, strict=True):
        assert torch.equal(packed.multiply(x, view, None), part)
        assert view.codes.untyped_storage().data_ptr() == joined.codes.untyped_storage().data_ptr()


def test_only_shapes_that_torch_multiplies_are_packed() -> None:
    shapes = ((64, 32), (96, 32), (64, 40), (64, 48), (64,))
    assert [packed.is_served(shape, 4) for shape in shapes] == [True, False, False, False, False]
    assert [packed.is_served(shape, 8) for shape in shapes] == [True, True, False, True, False]
