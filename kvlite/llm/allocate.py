"""From a budget to an engine: the slot format the model tolerates, the cache it buys, allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvlite.llm.spec import BatchSize, PlanDevice

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.llm.text_model import TextModel
    from kvlite.memory.fit import Fit
    from kvlite.memory.plan import CacheSpec
    from kvlite.models.kv_quant_check import QuantEffect


@dataclass(frozen=True, slots=True)
class Allocated:
    """An engine with its cache, and how they fit beside the weights; `batch_size` is what they were made for."""

    engine: Engine
    fit: Fit
    batch_size: BatchSize | None


def allocate(model: TextModel, batch_size: BatchSize | None) -> Allocated:
    """Build the engine for one conversation with the whole budget (None), or for a batch whose rows share it.

    Raises CapacityError where the budget or the device's memory is too small, SlotsTooCoarse where the model does not
    tolerate the slot format that was named.
    """
    from kvlite.engine.decode_graphs import CudaGraphs
    from kvlite.engine.engine import Engine
    from kvlite.models.device import free_bytes

    spec, loaded, device = model.spec, model.loaded, model.loaded.device
    place = PlanDevice("cuda" if device.type == "cuda" else "cpu", str(device), free_bytes(device))
    fit = spec.fit(model.files, place, batch_size, loaded=loaded.shape)
    fit = replace(fit, spec=_tolerated(model, fit.specs(spec.budget)))
    engine = Engine(
        loaded,
        fit.cache(spec.budget),
        spec.policy,
        fit.spec.slot_format,
        spec.on_full,
        spec.options.kernels,
        recorder=CudaGraphs(device) if model.captures else None,
        warn=model.listener.warn,
    )
    return Allocated(engine, fit, batch_size)


def _tolerated(model: TextModel, specs: Sequence[CacheSpec]) -> CacheSpec:
    """The first of `specs` that the model tolerates: without harm where there is another to take instead.

    Raises SlotsTooCoarse where the only one destroys the model's answers.
    """
    from kvlite.models.kv_quant_check import try_format

    is_named = len(specs) == 1
    for spec in specs:
        stored = spec.slot_format
        if not stored.is_quantised:
            return spec
        if stored.name not in model.effects:
            effect = model.effects[stored.name] = try_format(model.loaded, stored, is_named=is_named)
            _tell(model, effect, is_named)
        if is_named or model.effects[stored.name].is_harmless:
            return spec
    raise AssertionError("the last format is the model's own dtype")


def _tell(model: TextModel, effect: QuantEffect, is_named: bool) -> None:
    listener, name = model.listener, effect.stored.name
    if is_named:
        (listener.warn if effect.is_noticeable else listener.detail)(str(effect))
    elif effect.is_harmless:
        listener.detail(f"--kv-dtype auto takes {name}: {effect.finding}")
    else:
        listener.note(f"--kv-dtype auto passes over {name}, fewer tokens are kept: {effect.finding}")
