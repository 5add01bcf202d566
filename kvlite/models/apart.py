"""Linear maps in bfloat16 on a CPU that multiply rows one by one where each must come out as if it were alone.

oneDNN adds the products of one row up in another order than those of several, where there are more than 1,024 of them:
one output in some hundred thousand is then rounded otherwise, and a drafted token would not be verified to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_INPUTS = 1024
"""Channels in up to which a row comes out among several as it does alone."""

_apart: ContextVar[bool] = ContextVar("kvlite_apart", default=False)


@contextmanager
def rows_apart(is_asked: bool) -> Iterator[None]:
    """Multiply rows one by one in the block, if that is asked for."""
    token = _apart.set(is_asked)
    try:
        yield
    finally:
        _apart.reset(token)


class ApartLinear(nn.Linear):
    """The linear map `held`, whose weights it shares; the same but inside `rows_apart`."""

    def __init__(self, held: nn.Linear) -> None:
        super().__init__(held.in_features, held.out_features, bias=held.bias is not None, device="meta")
        self.weight, self.bias = held.weight, held.bias

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in_features] -> [..., out_features]."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        if not _apart.get():
            return functional.linear(input, weight, bias)
        rows = [functional.linear(row, weight, bias) for row in input.reshape(-1, self.in_features).split(1)]
        return torch.cat(rows).view(*input.shape[:-1], self.out_features)


def set_apart(model: nn.Module) -> None:
    """Replace the linear maps of a checked model on a CPU whose rows come out otherwise among several."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child.weight.dtype is not torch.bfloat16:
                continue
            if child.in_features > MOST_INPUTS and child.weight.device.type == "cpu":
                setattr(parent, name, ApartLinear(child))
