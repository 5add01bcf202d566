"""Constant-size state of hybrid models (convolutions, SSM, linear attention): transformers' own cache objects.

Their attention layers are replaced by ones that hand back only the new keys and values, because the slots own those.
The state does not grow with the context; it is counted, copied and reset here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

_STATES = ("conv_states", "recurrent_states")


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """The state of one row on the host: every tensor, and by layer which states have a past."""

    tensors: list[Tensor]
    has_past: list[dict[int, bool]]

    @property
    def num_bytes(self) -> int:
        """Bytes of host memory."""
        return sum(tensor.nbytes for tensor in self.tensors)


class HybridState:
    """The state of one row; `cache` is what the model is called with. Padding would enter it, so rows go one by one.

    Its tensors are allocated by the first forward pass, in `verify`, and overwritten in place from then on.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self.cache = _state_only_cache(config)
        self._layers = [layer for layer in self.cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]

    @property
    def num_bytes(self) -> int:
        """Bytes of the state tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Every state tensor that is allocated."""
        held = [getattr(layer, name).values() for layer in self._layers for name in _STATES]
        return [tensor for tensors in held for tensor in tensors if tensor is not None]

    @torch.inference_mode()  # the tensors were made in it
    def reset(self) -> None:
        """Start a new conversation."""
        for layer in self._layers:
            layer.reset()

    def snapshot(self) -> StateSnapshot:
        """Copy the state to the host."""
        tensors = [tensor.to("cpu", copy=True) for tensor in self.tensors()]
        return StateSnapshot(tensors, [dict(layer.has_previous_state) for layer in self._layers])

    @torch.inference_mode()
    def restore(self, snapshot: StateSnapshot) -> None:
        """Continue from a snapshot, which stays usable."""
        for tensor, saved in zip(self.tensors(), snapshot.tensors, strict=True):
            tensor.copy_(saved)
        for layer, has_past in zip(self._layers, snapshot.has_past, strict=True):
            layer.has_previous_state.update(has_past)


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
