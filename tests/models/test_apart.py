"""Linear maps in bfloat16: where it is asked for, a row comes out beside others as alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kvlite.models.apart import MOST_INPUTS, ApartLinear, rows_apart, set_apart
from tests.architectures import tiny_model

WIDE = 3 * MOST_INPUTS // 2


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_row_beside_others_is_that_row_alone(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(WIDE, 96, bias=bias, dtype=torch.bfloat16)
    map_, x = ApartLinear(plain), torch.randn(1, 40, WIDE, dtype=torch.bfloat16)
    assert map_.weight is plain.weight and map_.bias is plain.bias
    alone = torch.cat([plain(x[:, i : i + 1]) for i in range(40)], 1)
    assert torch.equal(map_(x), plain(x))
    with rows_apart(True):
        assert torch.equal(map_(x), alone)
    with rows_apart(False):
        assert torch.equal(map_(x), plain(x))


@pytest.mark.parametrize(("dtype", "is_replaced"), [(torch.bfloat16, True), (torch.float32, False)])
def test_only_wide_maps_in_bfloat16_are_replaced(dtype: torch.dtype, is_replaced: bool) -> None:
    model = tiny_model("llama", {}, intermediate_size=WIDE).to(dtype)
    down = [layer.mlp.down_proj for layer in model.model.layers]
    set_apart(model)
    replaced = [module for module in model.modules() if type(module) is ApartLinear]
    assert len(replaced) == len(down) * is_replaced
    assert all(one.weight is other.weight for one, other in zip(replaced, down, strict=False))
