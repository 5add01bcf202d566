"""Launches of the product for one attention layer and between its products, on small tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvlite_kernels.backend import LayerSizes
from kvlite_kernels.blocks import SIZES, Blocks
from kvlite_kernels.eviction import Protection
from kvlite_kernels.fused_ops import ACTIVATIONS, Norm
from kvlite_kernels.kinds import Noise, Statistic
from kvlite_kernels.nf4 import FourBit
from kvlite_kernels.reference import Geometry, Segment
from kvlite_kernels.slots import Slots, Vectors
from kvlite_kernels.statistic import Observation
from kvlite_kernels.triton_set.attention import attend_many, attend_one
from kvlite_kernels.triton_set.backend import TritonBackend
from kvlite_kernels.triton_set.fused_ops import TritonOps
from kvlite_kernels.triton_set.tiles import Processor


@dataclass(frozen=True)
class Layer:
    """The sizes of one attention layer, on an architecture.

    Slots of 0 `bits` hold numbers; values are in 4 beside keys in 6.
    """

    sm: int
    dim: int
    v_dim: int
    group: int
    bits: int = 0
    statistic: str = "mass"
    kv_heads: int = 2
    slots: int = 512
    tokens: int = 64
    hidden: int = 16384

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.sm < 80 else torch.bfloat16

    @property
    def dims(self) -> str:
        return f"{self.dim}/{self.v_dim}" if self.dim != self.v_dim else str(self.dim)

    @property
    def backend(self) -> TritonBackend:
        """The backend of such a layer, which asks nothing of the device that is not there."""
        sizes = LayerSizes(self.kv_heads * self.group, self.kv_heads, self.slots + 1, self.dim, self.v_dim)
        return TritonBackend([sizes], 1, [self.dtype], torch.device("cpu"), Processor(self.sm, 64))

    def observed(self, tokens: int) -> Observation:
        return Observation(Statistic(self.statistic), torch.ones(1, tokens), noise=Noise(0, 1.0, 2.0, 100))

    def held(self) -> Slots:
        heads = (1, self.kv_heads, self.slots + 1)
        k, v = self.slots_of(*heads)
        return Slots.empty(k, v, has_statistic=True, has_bias=True)

    def slots_of(self, *heads: int) -> tuple[Vectors, Vectors]:
        """Keys and values as slots hold them; a kernel codes them."""
        k, v = torch.zeros(*heads, self.dim), torch.zeros(*heads, self.v_dim)
        if not self.bits:
            return k.to(self.dtype), v.to(self.dtype)
        groups = (min(32, dim & -dim) for dim in (self.dim, self.v_dim))
        bits = (self.bits, 4 if self.bits == 6 else self.bits)
        k_coded, v_coded = (self.backend.quantise(*each) for each in zip((k, v), bits, groups, strict=True))
        return k_coded, v_coded

    def decode(self) -> None:
        """One token against full slots."""
        heads = self.kv_heads * self.group
        held, geometry, pos = self.held(), Geometry(0.1), torch.zeros(1, 1, dtype=torch.int32)
        q = torch.zeros(1, heads, 1, self.dim, dtype=self.dtype)
        segment = Segment(held.k, held.v, held.pos, held.statistic, bias=held.bias)
        attend_one(q, pos, segment, geometry, self.backend.scratch, self.observed(1))
        pins = torch.zeros(1, 2, 2, dtype=torch.int32)
        protection = Protection(8, 4, pins=pins, most_pinned=9)
        self.backend.evict(held, torch.zeros(held.pos.shape), pos[..., None], protection)

    def prefill(self) -> None:
        """A chunk against full slots."""
        held, pos = self.held(), torch.zeros(1, self.tokens, dtype=torch.int32)
        q = torch.zeros(1, self.kv_heads * self.group, self.tokens, self.dim, dtype=self.dtype)
        assert held.bias is not None
        slots = Segment(held.k[:, :, :-1], held.v[:, :, :-1], held.pos[:, :, :-1], bias=held.bias[:, :, :-1])
        chunk = self.slots_of(1, self.kv_heads, self.tokens)
        segments = [slots, Segment(*chunk, pos[:, None])]
        attend_many(q, pos, segments, Geometry(0.1), self.sm, self.observed(self.tokens))

    def between_products(self) -> None:
        """The element-wise kernels at their heaviest: both norms, normed heads, the most costly activation."""
        ops = TritonOps(Processor(self.sm, 64))
        x, counts = torch.zeros(1, 1, self.hidden, dtype=self.dtype), (self.kv_heads * self.group, self.kv_heads)
        norm = Norm(torch.zeros(self.hidden), 1e-6)  # fp32, as an offset makes it
        ops.add_norm(x, x, norm, norm)
        heads = torch.zeros(1, 1, sum(counts) + self.kv_heads, self.dim, dtype=self.dtype)
        cos = torch.zeros(1, 1, self.dim, dtype=self.dtype)
        of_heads = Norm(torch.zeros(self.dim, dtype=self.dtype), 1e-6)
        ops.rotate(heads, counts, cos, cos, norms=(of_heads, of_heads))
        for activation in ACTIVATIONS:
            ops.gated(x, activation)

    def four_bit(self) -> None:
        """Products of one row and of many, over channels that are cut into parts and over whole ones."""
        ops, channels = TritonOps(Processor(self.sm, 64)), 1024
        most = ops.most_four_bit_rows(self.dtype)
        for outputs in (256, 16384):
            packed = torch.zeros(outputs, channels // 2, dtype=torch.uint8)
            weight = FourBit(packed, torch.zeros(outputs * channels // 64), torch.zeros(16), 64)
            for rows in {1, min(16, most), most}:
                x = torch.zeros(rows, channels, dtype=self.dtype)
                ops.multiply_four_bit(x, weight, torch.zeros(outputs, dtype=self.dtype))

    def in_blocks(self, kinds: Sequence[str] = ("Q4_1", "Q5_K", "Q6_K", "Q8_0")) -> None:
        """Products with GGUF blocks of one row and of many; the kinds are those that take most of each layout."""
        ops, outputs = TritonOps(Processor(self.sm, 64)), 256
        for kind in kinds:
            weights, size = SIZES[kind]
            weight = Blocks(torch.zeros(outputs, 1024 // weights * size, dtype=torch.uint8), kind)
            for rows in {1, ops.most_block_rows(self.dtype)}:
                ops.multiply_blocks(torch.zeros(rows, 1024, dtype=self.dtype), weight, None)
