"""Turning stored keys on."""

from __future__ import annotations

import pytest
import torch

from kvlite.cache.rotation import Rotation
from tests.cache.driving import rotated
from tests.parity.compare import assert_parity

D = 20


def rotation(channels: int, start: int, interleaved: bool) -> Rotation:
    return Rotation(100.0 ** -(torch.arange(channels // 2) * 2 / channels), start, interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("channels", "start"), [(20, 0), (12, 0), (12, 8), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_turned_key_is_the_raw_key_rotated_to_its_new_place(
    channels: int, start: int, interleaved: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    raw = torch.randn(3, 7, D)
    old, new = torch.randint(0, 400, (2, 3, 7), dtype=torch.int32)
    turn = rotation(channels, start, interleaved)
    keys = rotated(raw, old, turn).to(dtype)
    turn.rotate_(keys, new - old)
    assert_parity("keys", keys, rotated(raw, new, turn), 1e-4 if dtype == torch.float32 else 1e-2)


def test_channels_outside_the_rotation_are_untouched() -> None:
    torch.manual_seed(0)
    keys = torch.randn(2, 5, D)
    before = keys.clone()
    rotation(8, 6, False).rotate_(keys, torch.full((2, 5), 3))
    assert torch.equal(keys[..., :6], before[..., :6])
    assert torch.equal(keys[..., 14:], before[..., 14:])
    assert not torch.isclose(keys[..., 6:14], before[..., 6:14]).all()


def test_no_turn_changes_no_bit() -> None:
    torch.manual_seed(0)
    keys = torch.randn(2, 5, D).bfloat16()
    before = keys.clone()
    rotation(20, 0, False).rotate_(keys, torch.zeros(2, 5, dtype=torch.int32))
    assert torch.equal(keys, before)
