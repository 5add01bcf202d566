"""The workers that the options of a batch ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kvlite.batch.workers.memory import Memory
from kvlite.batch.workers.messages import Setup
from kvlite.batch.workers.processes import Processes
from kvlite.batch.workers.team import Workers
from kvlite.memory.host import usable_cores
from kvlite.options import AnswerOptions, BatchOptions, worker_devices

if TYPE_CHECKING:
    from kvlite.batch.model import Model
    from kvlite.record.recorder import Recorder


def open_workers(model: Model, answer: AnswerOptions, options: BatchOptions, recorder: Recorder) -> Workers:
    """Start a worker on each device of `options.devices`; they load `model` while this returns."""
    assert options.devices is not None
    devices = worker_devices(options.devices)
    cores, on_cpu = usable_cores(), devices.count("cpu")
    setups = [
        Setup(
            options=replace(model.spec.options, device=device),
            answer=answer,
            batch=options,
            batch_size=model.batch_size,
            required=model.required,
            threads=max(1, cores // on_cpu) if cores is not None and device == "cpu" else None,
        )
        for device in devices
    ]
    memory = Memory(recorder, model.budget_source)
    return Workers(Processes(setups), options, model.identity(), model.console, memory)
