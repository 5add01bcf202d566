"""Scratch memory of the decode kernels: allocated once, for the widest layer, used by every layer in turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from kvlite_kernels.backend import LayerSizes
from kvlite_kernels.triton_set.tiles import MAX_SPLITS, Processor

PROGRAMS_PER_PROCESSOR = 3


class Scratch:
    """Logits and partial attentions for decode steps of at most `rows` rows of `layers`."""

    def __init__(self, layers: Sequence[LayerSizes], rows: int, processor: Processor, device: torch.device) -> None:
        self.processor = processor
        query_heads, keys = max(layer.query_heads for layer in layers), max(layer.keys for layer in layers)
        group, v_dim = max(layer.group for layer in layers), max(layer.v_dim for layer in layers)
        # n rows of H_KV heads have ceil(programs / (n * H_KV)) splits of G query heads.
        programs = PROGRAMS_PER_PROCESSOR * processor.count
        partials = min(group * programs + rows * query_heads, rows * query_heads * MAX_SPLITS)

        def empty(count: int) -> Tensor:
            return torch.empty(count, dtype=torch.float32, device=device)

        self.logits = empty(rows * query_heads * keys)
        self.max, self.sum, self.norm_max, self.norm_sum = (empty(partials) for _ in range(4))
        self.part = empty(partials * v_dim)

        self.tensors = [self.logits, self.max, self.sum, self.norm_max, self.norm_sum, self.part]

    def splits(self, heads: int, num_keys: int, tile: int) -> tuple[int, int]:
        """Splits of `num_keys` keys into whole tiles, and the keys of each.

        As many programs share one of `heads` rows x KV heads as it takes for all multiprocessors to be at work.
        """
        programs = max(1, min(MAX_SPLITS, triton.cdiv(PROGRAMS_PER_PROCESSOR * self.processor.count, heads)))
        keys_per_split = triton.cdiv(triton.cdiv(num_keys, tile), programs) * tile
        return triton.cdiv(num_keys, keys_per_split), keys_per_split
