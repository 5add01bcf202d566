"""Linear maps in bfloat16 on a CPU, made to give a row the same output however many are multiplied at once.

oneDNN adds the products of one row up in another order than those of several, where there are more than 1,024 of them:
one output in some hundred thousand is then rounded otherwise. So answers would depend on what is computed beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kvlite.models.loaded import LoadedModel

MOST_INPUTS = 1024
"""Channels in up to which one row comes out as among several."""


class EvenLinear(nn.Linear):
    """The linear map `held`, whose weights it shares; a single row is multiplied twice."""

    def __init__(self, held: nn.Linear) -> None:
        super().__init__(held.in_features, held.out_features, bias=held.bias is not None, device="meta")
        self.weight, self.bias = held.weight, held.bias

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in_features] -> [..., out_features]."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        if input.numel() > self.in_features:
            return functional.linear(input, weight, bias)
        twice = functional.linear(input.view(1, -1).expand(2, -1), weight, bias)
        return twice[0].view(*input.shape[:-1], self.out_features)


def make_even(loaded: LoadedModel) -> None:
    """Replace the linear maps of a checked model that are not even."""
    if loaded.device.type != "cpu":
        return
    for parent in list(loaded.model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child.weight.dtype is not torch.bfloat16:
                continue
            if child.in_features > MOST_INPUTS:
                setattr(parent, name, EvenLinear(child))
