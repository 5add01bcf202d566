"""Constant-size state of hybrid models (convolutions, SSM, linear attention) in transformers' own cache of layers.

Their attention layers keep nothing there, because the slots own keys and values. The state does not grow with the
context; it is counted, copied and reset here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """The state of one row on the host: every tensor, and by layer which states have a past."""

    tensors: list[Tensor]
    has_past: list[dict[int, bool]]

    @property
    def num_bytes(self) -> int:
        """Bytes of host memory."""
        return sum(tensor.nbytes for tensor in self.tensors)


class HybridState(DynamicCache):
    """The state of one row, which the model is called with. Padding would enter it, so rows go one by one.

    Its tensors are allocated by the first forward pass, in `verify`, and overwritten in place from then on.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Hand the new keys and values back; the attention layers stay empty."""
        return key_states, value_states

    @property
    def num_bytes(self) -> int:
        """Bytes of the state tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Every state tensor that is allocated."""
        states = [states for layer in self._stateful() for states in (layer.conv_states, layer.recurrent_states)]
        return [tensor for held in states for tensor in held.values() if tensor is not None]

    @torch.inference_mode()  # the tensors were made in it
    def reset(self) -> None:
        """Start a new conversation."""
        super().reset()  # type: ignore[no-untyped-call]

    def snapshot(self) -> StateSnapshot:
        """Copy the state to the host."""
        tensors = [tensor.to("cpu", copy=True) for tensor in self.tensors()]
        return StateSnapshot(tensors, [dict(layer.has_previous_state) for layer in self._stateful()])

    @torch.inference_mode()
    def restore(self, snapshot: StateSnapshot) -> None:
        """Continue from a snapshot, which stays usable."""
        for tensor, saved in zip(self.tensors(), snapshot.tensors, strict=True):
            tensor.copy_(saved)
        for layer, has_past in zip(self._stateful(), snapshot.has_past, strict=True):
            layer.has_previous_state.update(has_past)

    def _stateful(self) -> list[LinearAttentionCacheLayerMixin]:
        return [layer for layer in self.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
