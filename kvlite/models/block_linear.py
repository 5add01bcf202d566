"""Weights that stay in the blocks of a GGUF file on a GPU: few rows by kernels over the file's bytes, more unpacked.

The bytes are one parameter, so that they move with the model; all else about the blocks is their kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kvlite_kernels.blocks import Blocks, multiply_unpacked, unpack
from kvlite_kernels.fused_ops import TORCH_OPS, FusedOps


class BlockLinear(nn.Module):
    """A linear map over GGUF blocks: as many rows as `ops` is fast for by it, more by weights unpacked in tiles.

    Until `hold` has given it weights it is as transformers builds a model before loading: on the meta device.
    """

    weight: Any
    bias: Tensor | None

    def __init__(
        self, outputs: int, inputs: int, bias: nn.Parameter | None, dtype: torch.dtype, ops: FusedOps = TORCH_OPS
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device="meta"), requires_grad=False)
        self.register_parameter("bias", bias)
        self.dtype = dtype
        self.ops = ops
        self.kind = ""

    @classmethod
    def of(
        cls, weights: Blocks, bias: nn.Parameter | None, dtype: torch.dtype, ops: FusedOps = TORCH_OPS
    ) -> BlockLinear:
        """A map that holds `weights` from the start."""
        made = cls(*weights.shape, bias, dtype, ops)
        made.weight = made.hold(weights)
        return made

    def hold(self, weights: Blocks) -> nn.Parameter:
        """Multiply with blocks of this kind from now on; their bytes as the parameter that is to be `weight`."""
        self.kind = weights.kind
        return as_parameter(weights.data)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        weight = Blocks(cast(Tensor, self._parameters["weight"]), self.kind)
        bias, rows = self._parameters["bias"], x.reshape(-1, self.in_features)
        if 1 <= len(rows) <= self.ops.most_block_rows(x.dtype):
            out = self.ops.multiply_blocks(rows, weight, bias)
        else:
            out = multiply_unpacked(rows, weight, bias)
        return out.view(*x.shape[:-1], self.out_features)


class BlockEmbedding(nn.Module):
    """An embedding table in GGUF blocks; rows are unpacked when they are looked up, and multiplied by `factor`."""

    def __init__(self, weights: Blocks, dtype: torch.dtype, factor: Tensor | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weights.shape
        self.weight = as_parameter(weights.data)
        self.register_buffer("factor", factor, persistent=False)
        self.kind = weights.kind
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of ids [...]: [..., embedding_dim]."""
        rows = unpack(self.weight[ids.flatten()], self.kind).to(self.dtype).view(*ids.shape, self.embedding_dim)
        factor = self._buffers["factor"]
        return rows if factor is None else rows * factor


def as_parameter(data: Tensor) -> nn.Parameter:
    """`data` as a parameter, itself where it is one: of tied weights there is one."""
    return data if isinstance(data, nn.Parameter) else nn.Parameter(data, requires_grad=False)


def block_form(module: Any, ops: FusedOps) -> BlockLinear | None:
    """A map over blocks as one that multiplies with `ops`, over the same bytes; None where `ops` is not fast for it."""
    if type(module) is not BlockLinear or ops.most_block_rows(module.dtype) == 0:
        return None
    return BlockLinear.of(Blocks(module.weight, module.kind), cast(Any, module.bias), module.dtype, ops)


def join_blocks(parts: Sequence[Any]) -> BlockLinear | None:
    """Maps of one input as one, whose outputs stand one after another; their weights become views of its own.

    None where they are not all blocks of one kind.
    """
    if not all(type(part) is BlockLinear for part in parts) or len({part.kind for part in parts}) > 1:
        return None
    maps = cast(Sequence[BlockLinear], parts)
    data = torch.cat([part.weight.data for part in maps])
    for part, view in zip(maps, data.split([part.out_features for part in maps]), strict=True):
        part.weight.data = view
    biases = [part.bias for part in maps if part.bias is not None]
    bias = nn.Parameter(torch.cat([one.data for one in biases]), requires_grad=False) if biases else None
    return BlockLinear.of(Blocks(data, maps[0].kind), bias, maps[0].dtype, maps[0].ops)
