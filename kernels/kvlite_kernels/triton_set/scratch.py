"""Scratch memory of the decode kernels: allocated once, for the widest layer, used by every layer in turn."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kvlite_kernels.triton_set.tiles import MAX_SPLITS, Processor

PROGRAMS_PER_PROCESSOR = 3


class Scratch:
    """Logits and partial attentions for decode steps of at most `rows` rows.

    `query_heads`, `group`, `keys` and `v_dim` are the most that any layer has.
    """

    def __init__(
        self, rows: int, query_heads: int, group: int, keys: int, v_dim: int, processor: Processor, device: torch.device
    ) -> None:
        self.processor = processor
        # n rows of H_KV heads have ceil(programs / (n * H_KV)) splits of G query heads.
        programs = PROGRAMS_PER_PROCESSOR * processor.count
        partials = min(group * programs + rows * query_heads, rows * query_heads * MAX_SPLITS)

        def empty(count: int) -> Tensor:
            return torch.empty(count, dtype=torch.float32, device=device)

        self.logits = empty(rows * query_heads * keys)
        self.max, self.sum, self.norm_max, self.norm_sum = (empty(partials) for _ in range(4))
        self.part = empty(partials * v_dim)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor, each allocated once."""
        return [self.logits, self.max, self.sum, self.norm_max, self.norm_sum, self.part]

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def splits_of(self, heads: int) -> int:
        """The number of programs that share one of `heads` rows x KV heads, so that all multiprocessors are at work."""
        return max(1, min(MAX_SPLITS, -(-PROGRAMS_PER_PROCESSOR * self.processor.count // heads)))

    def splits(self, heads: int, num_keys: int, tile: int) -> tuple[int, int]:
        """Splits of `num_keys` keys into whole tiles, and the keys of each."""
        keys_per_split = triton.cdiv(triton.cdiv(num_keys, tile), self.splits_of(heads)) * tile
        return triton.cdiv(num_keys, keys_per_split), keys_per_split
