"""The one function through which every attention layer of a transformers model reaches its slots.

Registered with `transformers.AttentionInterface` under the name `kvlite` and with no mask function: every
`create_*_mask` of transformers then returns None at once, and causality, windows and padding follow from the
positions that the engine's Step names. Keys and values arrive rotated; only the new ones arrive, because the model is
called without a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from kvlite.cache.step import Step
from kvlite.errors import UnsupportedModel
from kvlite.memory.shape import LayerShape
from kvlite_kernels.reference import Geometry

ATTENTION = "kvlite"


class AttentionLayer(Protocol):
    """A layer's keys and values: attends over them and the new ones."""

    @property
    def shape(self) -> LayerShape:
        """Its heads and its window."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry) -> Tensor:
        """q [n, H_Q, T, D] and the new k, v [n, H_KV, T, D], rotated -> out [n, H_Q, T, D_V]."""


class AttentionLayers(Protocol):
    """The attention layers of a model by index: a SlotCache, or what reads along."""

    @property
    def layers(self) -> Mapping[int, AttentionLayer]:
        """A layer for every one that has keys."""

    def end(self, step: Step) -> None:
        """Record what `step` added, after the forward pass."""


_bound: ContextVar[tuple[AttentionLayers, Sequence[Step]]] = ContextVar("kvlite_bound")


@contextmanager
def bound_cache(slots: AttentionLayers, *steps: Step) -> Iterator[None]:
    """Bind `slots` and `steps` for the attention layers of the forward pass inside the block.

    The tokens of several steps stand in one row, those of one step after another.
    """
    token = _bound.set((slots, steps))
    try:
        yield
    finally:
        _bound.reset(token)
    for step in steps:
        slots.end(step)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,  # what transformers hands to every implementation and slots do not need
) -> tuple[Tensor, None]:
    """query [B, H_Q, T, D], key [B, H_KV, T, D], value [B, H_KV, T, D_V] -> [B, T, H_Q, D_V] and no weights."""
    index: int = module.layer_idx  # type: ignore[assignment]
    slots, steps = _bound.get()
    layer = slots.layers[index]
    if sliding_window is not None and sliding_window != layer.shape.window:
        raise UnsupportedModel(
            f"layer {index} sees {sliding_window} positions back where config.json says "
            f"{layer.shape.window or 'all'}; choose another model"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    geometry = _geometry(scaling, layer.shape.window, softcap)
    if s_aux is not None:
        geometry = replace(geometry, sink_logits=s_aux)
    if len(steps) == 1:
        return layer.attend(query, key, value, steps[0], geometry).transpose(1, 2).contiguous(), None
    return _attend_packed(layer, (query, key, value), steps, geometry), None


def _attend_packed(
    layer: AttentionLayer, qkv: tuple[Tensor, Tensor, Tensor], steps: Sequence[Step], geometry: Geometry
) -> Tensor:
    """Attend step by step; q, k, v [1, H, N, D] hold the tokens of all rows of all steps -> [1, N, H_Q, D_V]."""
    outs, start = [], 0
    for step in steps:
        rows, tokens = step.pos.shape
        here = slice(start, start + rows * tokens)
        q, k, v = (part[0, :, here].unflatten(1, (rows, tokens)).transpose(0, 1) for part in qkv)
        outs.append(layer.attend(q, k, v, step, geometry).transpose(1, 2).flatten(0, 1))
        start = here.stop
    return torch.cat(outs)[None]


@cache
def _geometry(scaling: float, window: int | None, softcap: float | None) -> Geometry:
    return Geometry(scaling, window, softcap)


AttentionInterface.register(ATTENTION, attention)
