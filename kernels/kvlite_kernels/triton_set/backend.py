"""The Backend in Triton: attention, coding and eviction by kernels, over one scratch; plain copies write slots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import triton
from torch import Tensor

from kvlite_kernels.backend import Backend, KernelsUnavailable, LayerSizes
from kvlite_kernels.eviction import Protection
from kvlite_kernels.lowbit import Packed, code_bytes, hadamard
from kvlite_kernels.reference import Geometry, Segment
from kvlite_kernels.slots import Slots
from kvlite_kernels.statistic import Observation
from kvlite_kernels.triton_set import eviction, vectors
from kvlite_kernels.triton_set.attention import attend_many, attend_one
from kvlite_kernels.triton_set.operand import operand
from kvlite_kernels.triton_set.scratch import Scratch
from kvlite_kernels.triton_set.tiles import CODE_TILE, EVICT_TILE, Processor, lacking, padded


class TritonBackend(Backend):
    """The Backend of rows of `layers` on a `processor`, for queries and slots of `dtypes`.

    Raises KernelsUnavailable where a layer is more than they take.
    """

    name = "triton"

    def __init__(
        self,
        layers: Sequence[LayerSizes],
        rows: int,
        dtypes: Sequence[torch.dtype],
        device: torch.device,
        processor: Processor,
    ) -> None:
        for layer, dtype in product(layers, dtypes):
            if (lack := lacking(processor.capability, layer, dtype)) is not None:
                raise KernelsUnavailable(f"the Triton kernels do not take {lack}")
        self.scratch = Scratch(layers, rows, processor, device)
        self.scratch_bytes = sum(tensor.nbytes for tensor in self.scratch.tensors)

    def attend(
        self, q: Tensor, q_pos: Tensor, segments: list[Segment], geometry: Geometry, observation: Observation | None
    ) -> tuple[Tensor, Tensor | None]:
        """See Backend. Products are of the dtype of q."""
        held = segments[0]
        query = hadamard(q).to(q.dtype) if isinstance(held.k, Packed) else q
        received: list[Tensor] = []
        if len(segments) == 1 and q.shape[2] == 1:
            out = attend_one(query, q_pos, held, geometry, self.scratch, observation)
        else:
            capability = self.scratch.processor.capability
            out, _, received = attend_many(query, q_pos, segments, geometry, capability, observation)
            if observation is not None and held.statistic is not None:
                observation.add_to(held.statistic, received[0])
        if isinstance(held.k, Packed):
            out = hadamard(out)
        return out.to(q.dtype), received[1] if len(received) > 1 else None

    def heard(
        self, q: Tensor, q_pos: Tensor, segments: list[Segment], geometry: Geometry, observation: Observation
    ) -> Tensor:
        """See Backend. Values are attended, too, for nothing."""
        query = hadamard(q).to(q.dtype) if isinstance(segments[0].k, Packed) else q
        capability = self.scratch.processor.capability
        return attend_many(query, q_pos, segments, geometry, capability, observation, are_last=False)[2][0]

    def go_together(self, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None) -> bool:
        """See Backend."""
        return False

    def evict(self, slots: Slots, score: Tensor, next_pos: Tensor, protection: Protection) -> None:
        """See Backend."""
        if slots.pos.dim() == 3:
            slots = slots[None]
        k, v, dim, v_dim = operand(slots.k), operand(slots.v), slots.k.shape[-1], slots.v.shape[-1]
        _, rows, kv_heads, _ = slots.pos.shape
        score = score.contiguous()
        pins = next_pos if protection.pins is None else protection.pins
        statistic = slots.pos if slots.statistic is None else slots.statistic
        eviction.evict[(slots.pos.shape[:-1].numel(),)](
            k.data, k.scale, v.data, v.scale, slots.pos, slots.rot, statistic, slots.bias, score, next_pos, pins,
            slots.num_slots, rows, protection.recent, protection.sinks,
            0 if protection.window is None else protection.window, 0 if protection.pins is None else pins.shape[1],
            0 if protection.most_pinned is None else protection.most_pinned,
            *k.strides, *v.strides, *slots.pos.stride()[:-1], score.shape[-1], next_pos.stride(0),
            NUM_KV_HEADS=kv_heads, D=dim, D_V=v_dim, PAD_D=padded(dim), PAD_D_V=padded(v_dim),
            BITS=k.bits, BITS_V=v.bits, GROUP=k.group, GROUP_V=v.group,
            HAS_STATISTIC=slots.statistic is not None, HAS_WINDOW=protection.window is not None,
            LIMITS_PINS=protection.pins is not None and protection.most_pinned is not None,
            SLOTS=EVICT_TILE.columns, **EVICT_TILE.options,
        )  # fmt: skip

    def quantise(self, x: Tensor, bits: int, group: int) -> Packed:
        """See `lowbit.quantise`."""
        *shape, dim = x.shape
        dtype = torch.int8 if bits == 8 else torch.uint8
        codes = torch.empty(*shape, code_bytes(dim, bits), dtype=dtype, device=x.device)
        scale = torch.empty(*shape, dim // group, dtype=torch.float16, device=x.device)
        packed, num_vectors = Packed(codes, scale, dim), scale.numel() * group // dim
        vectors.code[(triton.cdiv(num_vectors, CODE_TILE.rows),)](
            x.contiguous(), codes, scale, num_vectors, D=dim, PAD_D=padded(dim), BITS=bits, GROUP=group,
            RUN=packed.run, TOKENS=CODE_TILE.rows, **CODE_TILE.options,
        )  # fmt: skip
        return packed
