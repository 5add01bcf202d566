"""Low-bit slots: chunks do not matter, rounding is bounded, and what turns is rounded once more."""

from __future__ import annotations

import pytest
import torch

from kvlite.cache.cache import SlotCache
from kvlite.cache.policies import HeavyHitter
from kvlite.cache.policy import Candidates, load_policy, policy_names
from kvlite.cache.rotation import Rotation, rotate_keys
from kvlite.memory.shape import ModelShape
from kvlite_kernels.slots import Slots
from tests.cache.driving import Driver, attention_layer, make_cache, model_shape, random_streams, slots_of
from tests.parity.compare import assert_parity

CODED = ("int8", "k6v4", "int4")
POLICIES = tuple(policy_names())
ROUNDING = {"int8": (0.008, 0.008), "k6v4": (0.035, 0.14), "int4": (0.14, 0.14)}
"""Relative RMSE of a rotated normal key and value, with room."""


def fed(shape: ModelShape, chunks: list[int], cache: SlotCache) -> list[torch.Tensor]:
    """What each layer gives for every token of a conversation of random tokens, [H_Q, N, D_V]."""
    driver = Driver(cache, [random_streams(shape, 2, sum(chunks), 0)])
    outs = [[row for (row,) in driver.feed([count])] for count in chunks]
    return [torch.cat(parts, 1) for parts in zip(*outs, strict=True)]


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("stored", ["bfloat16", *CODED])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("chunks", [[1] * 40, [7, 1, 20, 1, 11]])
def test_chunk_size_does_not_change_the_result_while_nothing_is_evicted(
    stored: str, policy: str, chunks: list[int]
) -> None:
    shape = model_shape(attention_layer(2, 16), attention_layer(1, 24, window=9, v_dim=8))
    rule = load_policy(policy)
    whole = fed(shape, [40], make_cache(shape, 40, rule, dtype=stored))
    for out, expected in zip(fed(shape, chunks, make_cache(shape, 40, rule, dtype=stored)), whole, strict=True):
        assert_parity("out", out, expected, 1e-5)


@pytest.mark.parametrize("stored", CODED)
@pytest.mark.parametrize(("k_dim", "v_dim"), [(8, 8), (80, 80), (96, 64), (192, 128), (24, 5)])
def test_a_slot_gives_back_what_it_holds_to_rounding(stored: str, k_dim: int, v_dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(3, 2, 50, dim, generator=generator) for dim in (k_dim, v_dim))
    for held, given, most in zip(read(slots_of(stored, k, v)), (k, v), ROUNDING[stored], strict=True):
        assert held.shape == given.shape
        assert error(held, given) < most


@pytest.mark.parametrize("stored", CODED)
def test_a_channel_that_all_keys_share_is_spread_before_it_is_rounded(stored: str) -> None:
    k = torch.randn(1, 1, 30, 64, generator=torch.Generator().manual_seed(0))
    k[..., 3] += 40  # in one channel, this would leave the others of its group no code but zero
    others = [channel for channel in range(32) if channel != 3]
    assert (
        error(read(slots_of(stored, k, k))[0][..., others], k[..., others])
        < {"int8": 0.1, "k6v4": 0.3, "int4": 0.9}[stored]
    )


@pytest.mark.parametrize("stored", CODED)
@pytest.mark.parametrize("chunks", [[40], [30] + [1] * 30])
def test_attention_is_close_to_that_over_exact_slots(stored: str, chunks: list[int]) -> None:
    shape = model_shape(attention_layer(2, 32))
    exact, coded = (
        fed(shape, chunks, make_cache(shape, 64, HeavyHitter(), dtype=name)) for name in ("float32", stored)
    )
    assert 0 < error(coded[0], exact[0]) < {"int8": 0.03, "k6v4": 0.2, "int4": 0.4}[stored]


TURNS = Rotation(1e4 ** -(torch.arange(16) / 16), 0, False)


def read(slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as numbers, without the discard slots."""
    held = Candidates(slots.pos, slots.pos, None, ((slots.k, slots.v),))
    return held.keys[..., :-1, :], held.values[..., :-1, :]


def turning(stored: str) -> tuple[Slots, torch.Tensor]:
    k = torch.randn(1, 2, 20, 32, generator=torch.Generator().manual_seed(0))
    return slots_of(stored, k, k), k[0]


@pytest.mark.parametrize("stored", CODED)
def test_a_key_that_stays_keeps_its_codes_when_others_turn(stored: str) -> None:
    slots, _ = turning(stored)
    tensors = dict(slots.tensors())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    delta = torch.tensor([[0, -5] * 8, [0, -9] * 8], dtype=torch.int32)
    rotate_keys(slots.k[0, :, :16], delta, TURNS)
    for name in ("k", "k_scale"):
        assert torch.equal(tensors[name][:, :, 0:16:2], before[name][:, :, 0:16:2])
        assert torch.equal(tensors[name][:, :, 16:], before[name][:, :, 16:])
    assert not torch.equal(tensors["k"][:, :, 1:16:2], before["k"][:, :, 1:16:2])
    assert torch.equal(tensors["v"], before["v"])


@pytest.mark.parametrize("stored", CODED)
def test_the_error_of_a_key_grows_as_the_root_of_how_often_it_turned(stored: str) -> None:
    slots, exact = turning(stored)
    delta = torch.full((2, 20), -7, dtype=torch.int32)
    for turns in range(1, 9):
        rotate_keys(slots.k[0, :, :20], delta, TURNS)
        TURNS.rotate_(exact, delta)
        assert error(read(slots)[0][0], exact) < ROUNDING[stored][0] * (turns + 1) ** 0.5
