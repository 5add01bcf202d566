"""Constant-size state of hybrid models (convolutions, SSM, linear attention): transformers' own cache objects.

Their attention layers are replaced by ones that hand back only the new keys and values, because the slots own those.
The state does not grow with the context; it is counted, copied and reset here.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)


class HybridState:
    """The state of one row; `cache` is what the model is called with. Padding would enter it, so rows go one by one."""

    def __init__(self, config: PretrainedConfig) -> None:
        self._blank = _state_only_cache(config)
        self.cache = copy.deepcopy(self._blank)

    @property
    def num_bytes(self) -> int:
        """Bytes of the state tensors, allocated at the first forward pass."""
        return sum(tensor.nbytes for layer in self.cache.layers for tensor in _tensors(vars(layer)))

    def reset(self) -> None:
        """Start a new conversation."""
        self.cache = copy.deepcopy(self._blank)

    def snapshot(self) -> DynamicCache:
        """A copy of the state."""
        return copy.deepcopy(self.cache)

    def restore(self, snapshot: DynamicCache) -> None:
        """Continue from a copy, which stays usable."""
        self.cache = copy.deepcopy(snapshot)


class _NoAttentionCache:
    """The attention half of a cache layer, keeping nothing; positions always come from the engine."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: Any) -> tuple[Any, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


class _PassThrough(_NoAttentionCache, CacheLayerMixin):
    """A layer of attention alone."""

    is_compileable = True
    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True


class _StateOnly(_NoAttentionCache, LinearAttentionLayer):
    """A layer with attention and SSM side by side: the SSM's states are kept."""


def _state_only_cache(config: PretrainedConfig) -> DynamicCache:
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, LinearAttentionCacheLayerMixin):
            cache.layers[index] = _PassThrough()  # type: ignore[no-untyped-call]
        elif isinstance(layer, CacheLayerMixin):
            cache.layers[index] = _StateOnly(number_of_states=layer.number_of_states)
    return cache


def _tensors(held: Any) -> list[Tensor]:
    if isinstance(held, Tensor):
        return [held]
    if isinstance(held, dict):
        return [tensor for value in held.values() for tensor in _tensors(value)]
    return []
