"""What the product launches for one attention layer and between its products, on small tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvlite_kernels.dense import ACTIVATIONS, Norm
from kvlite_kernels.kinds import Noise, Rank, Statistic
from kvlite_kernels.nf4 import FourBit
from kvlite_kernels.reference import Geometry, Segment, Vectors
from kvlite_kernels.slots import Arriving, Held, Ranking
from kvlite_kernels.statistic import Measure
from kvlite_kernels.triton_set.attention import attend_many, attend_one
from kvlite_kernels.triton_set.dense import TRITON_DENSE
from kvlite_kernels.triton_set.products import TritonProducts
from kvlite_kernels.triton_set.scratch import Scratch
from kvlite_kernels.triton_set.tiles import Processor
from kvlite_kernels.triton_set.writing import evict, insert, move, quantise


@dataclass(frozen=True)
class Layer:
    """The sizes of one attention layer, on an architecture; slots of 0 `bits` hold numbers."""

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

    def measure(self, tokens: int) -> Measure:
        return Measure(Statistic(self.statistic), torch.ones(1, tokens), noise=Noise(0, 1.0, 2.0, 100))

    def held(self) -> Held:
        heads = (1, self.kv_heads, self.slots + 1)
        k, v = (self.slots_of(torch.zeros(*heads, dim)) for dim in (self.dim, self.v_dim))
        pos, rot, order = (torch.zeros(heads, dtype=torch.int32) for _ in range(3))
        return Held(k, v, pos, rot, torch.zeros(heads), order)

    def slots_of(self, x: torch.Tensor) -> Vectors:
        """Vectors as slots hold them; a kernel codes them."""
        return quantise(x, self.bits, min(32, x.shape[-1] & -x.shape[-1])) if self.bits else x.to(self.dtype)

    def new(self, tokens: int) -> Arriving:
        dtype = torch.float32 if self.bits else self.dtype
        k, v = (torch.zeros(1, tokens, self.kv_heads, d, dtype=dtype).transpose(1, 2) for d in (self.dim, self.v_dim))
        pos, rot = (torch.zeros(1, tokens, dtype=torch.int32) for _ in range(2))
        return Arriving(k, v, pos, rot, None)

    def decode(self) -> None:
        """One token against full slots."""
        heads = self.kv_heads * self.group
        held, new, geometry = self.held(), self.new(1), Geometry(0.1)
        scratch = Scratch(1, heads, self.group, self.slots + 1, self.v_dim, Processor(self.sm, 64), torch.device("cpu"))
        q = torch.zeros(1, heads, 1, self.dim, dtype=self.dtype)
        ranking = Ranking(Rank("age", 1024), 8, 4, self.slots) if self.statistic == "mass" else None
        insert(held, new, slice(self.slots, self.slots + 1))
        segment, asked = Segment(held.k, held.v, held.pos), self.measure(1)
        attend_one(q, new.pos, segment, geometry, scratch, asked, held.statistic, None, ranking)
        move(held, scratch, 1)
        ranked = Ranking(Rank("age", 1024, 9), 8, 4, self.slots, pins=torch.zeros(1, 2, 2, dtype=torch.int32))
        evict(held, slice(0, 1), 1, new.pos, ranked, None)

    def prefill(self) -> None:
        """A chunk against full slots."""
        held, new = self.held(), self.new(self.tokens)
        q = torch.zeros(1, self.kv_heads * self.group, self.tokens, self.dim, dtype=self.dtype)
        slots = Segment(held.k[:, :, :-1], held.v[:, :, :-1], held.pos[:, :, :-1])
        chunk = [self.slots_of(x) for x in (new.k, new.v)]
        segments = [slots, Segment(*chunk, new.pos[:, None])]
        asked = self.measure(self.tokens)
        attend_many(q, new.pos, segments, Geometry(0.1), self.sm, asked)
        insert(held, new, torch.zeros(1, self.kv_heads, self.tokens, dtype=torch.int64))

    def between_products(self) -> None:
        """The element-wise kernels at their heaviest: both norms, normed heads, the most costly activation."""
        x, counts = torch.zeros(1, 1, self.hidden, dtype=self.dtype), (self.kv_heads * self.group, self.kv_heads)
        norm = Norm(torch.zeros(self.hidden), 1e-6)  # fp32, as an offset makes it
        TRITON_DENSE.add_norm(x, x, norm, norm)
        heads = torch.zeros(1, 1, sum(counts) + self.kv_heads, self.dim, dtype=self.dtype)
        cos = torch.zeros(1, 1, self.dim, dtype=self.dtype)
        of_heads = Norm(torch.zeros(self.dim, dtype=self.dtype), 1e-6)
        TRITON_DENSE.rotate(heads, counts, cos, cos, norms=(of_heads, of_heads))
        for activation in ACTIVATIONS:
            TRITON_DENSE.gated(x, activation)

    def four_bit(self) -> None:
        """Products of one row and of many, over channels that are cut into parts and over whole ones."""
        products, channels = TritonProducts(Processor(self.sm, 64)), 1024
        for outputs in (256, 16384):
            packed = torch.zeros(outputs, channels // 2, dtype=torch.uint8)
            weight = FourBit(packed, torch.zeros(outputs * channels // 64), torch.zeros(16), 64)
            for rows in {1, min(16, products.most_rows), products.most_rows}:
                products(torch.zeros(rows, channels, dtype=self.dtype), weight, torch.zeros(outputs, dtype=self.dtype))
