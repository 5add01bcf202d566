"""A head in 8 bits: the largest matrix that quantised weights leave as it is, in a quarter or half of its bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, library, nn

from kvlite.models.fusing import children, probe_logits, swap
from kvlite.models.loaded import LoadedModel
from kvlite_kernels.int8 import CodedProducts, EightBit, HostProducts, multiply, quantise

TOLERANCE = 0.03
"""Largest relative RMSE of the logits against the head as it was; codes of 8 bits alone make 0.007 to 0.01."""

CODED_HEAD = "int8-head"
"""The name of this patch."""


class EightBitHead(nn.Module):
    """A linear map over codes and one scale per output: few rows by `products`, more by the twin."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, products: CodedProducts | None) -> None:
        super().__init__()
        self.products = products
        weight = quantise(linear.weight.data)
        self.codes = nn.Buffer(weight.codes)
        self.scale = nn.Buffer(weight.scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        weight = EightBit(self.codes, self.scale)
        rows = x.reshape(-1, x.shape[-1])
        products = self.products if self.products and 1 <= len(rows) <= self.products.most_rows else multiply
        if torch.compiler.is_compiling() and isinstance(products, HostProducts):
            out: Tensor = _opaque(rows, self.codes, self.scale)
        else:
            out = products(rows, weight)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], -1)


def _multiply_on_host(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return HostProducts()(rows, EightBit(codes, scale))


_opaque = library.custom_op("kvlite::multiply_int8", _multiply_on_host, mutates_args=())
"""torch's kernel for CPUs, for a compiler, which fails on it."""


@_opaque.register_fake
def _multiplied(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return rows.new_empty(len(rows), len(codes))


def with_coded_head(loaded: LoadedModel, products: CodedProducts | None) -> tuple[LoadedModel, str | None]:
    """The model with its head in 8 bits and None, or as it is and why."""
    head: Any = loaded.model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return loaded, f"the head of {loaded.shape.family} models is no plain matrix"
    replaced = [child for child in children(loaded.model) if child[2] is head]
    off = swap(loaded, replaced, EightBitHead, products, probe_logits(loaded), TOLERANCE)
    if math.isinf(off):
        return loaded, "products with 8 bits do not run here"
    if off > TOLERANCE:
        return loaded, f"logits in 8 bits differ by {off:.1%}, more than {TOLERANCE:.0%}"
    return replace(loaded, fused=(*loaded.fused, CODED_HEAD)), None
