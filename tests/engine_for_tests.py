"""Engines over tiny random models, built without files."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from kvlite.cache.cache import SlotCache
from kvlite.cache.policy import load_policy
from kvlite.engine.engine import Engine
from kvlite.engine.request import Completion, Request
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from kvlite.memory.plan import plan_cache
from kvlite.memory.shape import ModelShape
from kvlite.models.hybrid import HybridState
from kvlite.models.loaded import LoadedModel
from kvlite.models.verify import admit


def shape_of(model: PreTrainedModel) -> ModelShape:
    return ModelShape.from_config({**model.config.to_dict(), "dtype": "float32"})


def admitted(model: PreTrainedModel, shape: ModelShape | None = None) -> LoadedModel:
    """`model` behind the gate, in fp32 on the CPU, without a tokenizer."""
    shape = shape or shape_of(model)
    has_state = any(layer.state_bytes for layer in shape.layers)
    state = HybridState(config=model.config) if has_state else None
    device = torch.device("cpu")
    return admit(LoadedModel(model, None, shape, torch.float32, device, "none", state=state))  # type: ignore[arg-type]


def make_engine(
    loaded: LoadedModel,
    budget: str = "64tok",
    policy: str = "heavy-hitter",
    rows: int = 1,
    kv_dtype: str = "auto",
    **options: Any,
) -> Engine:
    rule = load_policy(policy)
    on_full, kernels = options.pop("on_full", None), options.pop("kernels", "auto")
    recorder, must_capture = options.pop("recorder", None), options.pop("must_capture", True)
    warn, speculate = options.pop("warn", lambda text: None), options.pop("speculate", "off")
    spec = rule.cache_spec(slot_format(kv_dtype, "float32"), on_full, **options)
    plan = plan_cache(loaded.shape, Budget.parse(budget), spec, rows=rows, free_bytes=None)
    return Engine(loaded, plan, rule, spec.slot_format, on_full, kernels, recorder, must_capture, warn, speculate)


def answers(engine: Engine, requests: list[Request]) -> dict[str, Completion]:
    """The completion of every request."""
    return {event.request_id: event for event in engine.run(requests) if isinstance(event, Completion)}


def feed(loaded: LoadedModel, cache: SlotCache, ids: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits [T, V] of every position, fed to row 0 in `chunks`."""
    logits, start = [], 0
    for count in chunks:
        pos = torch.arange(start, start + count, dtype=torch.int32)[None]
        step = cache.begin(slice(0, 1), pos, pos, (count,), None)
        logits.append(loaded.forward(torch.tensor([ids[start : start + count]]), cache, step, last=count)[0])
        start += count
    return torch.cat(logits)
