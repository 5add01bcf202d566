"""The attention seam: the one function through which every layer of a transformers model reaches its slots.

Registered with `transformers.AttentionInterface` under the name `kvlite` and with no mask function: every
`create_*_mask` of transformers then returns None at once, and causality, windows and padding follow from the
positions that the engine's Step names. Keys and values arrive rotated; only the new ones arrive, because the model is
called without a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, library, nn
from transformers import AttentionInterface

from kvlite.cache.cache import SlotCache
from kvlite.cache.step import Step
from kvlite.errors import UnsupportedModel
from kvlite_kernels.reference import Geometry

ATTENTION = "kvlite"

_fed: ContextVar[tuple[SlotCache, Step]] = ContextVar("kvlite_fed")


def register() -> None:
    """Make `attn_implementation="kvlite"` known to transformers."""
    AttentionInterface.register(ATTENTION, attention)


@contextmanager
def feeding(slots: SlotCache, step: Step) -> Iterator[None]:
    """The forward pass inside the block feeds `step` to `slots`."""
    token = _fed.set((slots, step))
    try:
        yield
    finally:
        _fed.reset(token)
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
    attend = _opaque if torch.compiler.is_compiling() else _attend
    return attend(query, key, value, index, scaling, sliding_window, softcap, s_aux), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: int,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Tensor:
    slots, step = _fed.get()
    layer = slots.layers[index]
    if sliding_window is not None and sliding_window != layer.shape.window:
        raise UnsupportedModel(
            f"layer {index} sees {sliding_window} positions back where config.json says "
            f"{layer.shape.window or 'all'}; choose another model"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    geometry = _geometry(scaling, layer.shape.window, softcap)
    if sink_logits is not None:
        geometry = replace(geometry, sink_logits=sink_logits)
    return layer.attend(query, key, value, step, geometry).transpose(1, 2).contiguous()


_opaque = library.custom_op("kvlite::attend", _attend, mutates_args=())
"""`_attend` for a compiler, to which the slots that it reads and writes are no tensors of its graph."""


@_opaque.register_fake
def _attended(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    batch, heads, tokens, _dim = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[-1])


@cache
def _geometry(scaling: float, window: int | None, softcap: float | None) -> Geometry:
    return Geometry(scaling, window, softcap)
