"""Linear maps in bfloat16: a row comes out the same beside others as alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kvlite.models.even import MOST_INPUTS, EvenLinear, make_even
from tests.architectures import tiny_model
from tests.engine_for_tests import admitted

WIDE = 3 * MOST_INPUTS // 2


def linear(bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDE, 96, bias=bias, dtype=torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_row_alone_is_that_row_of_two(bias: bool) -> None:
    plain = linear(bias)
    even, x = EvenLinear(plain), torch.randn(40, WIDE, dtype=torch.bfloat16)
    assert even.weight is plain.weight and even.bias is plain.bias
    for row in x:
        pair = plain(torch.stack([row, row]))
        assert torch.equal(even(row[None]), pair[:1]) and torch.equal(even(row.view(1, 1, -1)), pair[None, :1])
    assert torch.equal(even(x), plain(x)) and even(x.view(2, 20, -1)).shape == (2, 20, 96)


@pytest.mark.skipif(
    not getattr(torch.cpu, "_is_avx512_bf16_supported", bool)(), reason="this processor multiplies bfloat16 another way"
)
@torch.inference_mode()
def test_and_that_row_of_sixteen() -> None:
    even, x = EvenLinear(linear(bias=False)), torch.randn(64, WIDE, dtype=torch.bfloat16)
    together = torch.cat([even(rows) for rows in x.split(16)])
    assert all(torch.equal(even(row[None])[0], other) for row, other in zip(x, together, strict=True))


@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 4), (torch.float32, 0)])
def test_only_wide_maps_in_bfloat16_are_replaced(dtype: torch.dtype, count: int) -> None:
    loaded = admitted(tiny_model("llama", {}, intermediate_size=WIDE))
    loaded.model.to(dtype)
    down = [layer.mlp.down_proj for layer in loaded.model.model.layers]
    make_even(loaded)
    replaced = [module for module in loaded.model.modules() if type(module) is EvenLinear]
    assert len(replaced) == (len(down) if count else 0)
    assert all(one.weight is other.weight for one, other in zip(replaced, down, strict=False))
