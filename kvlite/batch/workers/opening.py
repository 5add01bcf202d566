"""The workers that the options of a batch ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kvlite.batch.workers.memory import Memory
from kvlite.batch.workers.messages import Setup, Transport
from kvlite.batch.workers.on_ray import RayActors
from kvlite.batch.workers.processes import Processes
from kvlite.batch.workers.team import Workers
from kvlite.memory.host import usable_cores
from kvlite.options import AnswerOptions, BatchOptions, worker_devices
from kvlite.record.measure import versions

if TYPE_CHECKING:
    from kvlite.batch.model import Model
    from kvlite.record.recorder import Recorder


def open_workers(
    model: Model, answer: AnswerOptions, options: BatchOptions, recorder: Recorder, lines: int | None = None
) -> Workers:
    """Start the workers of `options.ray` or `options.devices`; they load `model` while this returns.

    There are no more of them than `lines`, where that is known.
    """
    setup = Setup(
        options=model.spec.options,
        answer=answer,
        batch=options,
        batch_size=model.batch_size,
        required=model.required,
        version=versions().get("kvlite", ""),
    )
    transport: Transport
    if options.ray is not None:
        transport = RayActors(options.ray, options.workers, setup, lines)
    else:
        assert options.devices is not None
        transport = Processes(_on_each(worker_devices(options.devices)[:lines], setup))
    return Workers(transport, options, model.identity(), model.console, Memory(recorder, model.budget_source))


def _on_each(devices: Sequence[str], setup: Setup) -> list[Setup]:
    """The setup on each device; those on the CPU share its cores."""
    cores, on_cpu = usable_cores(), devices.count("cpu")
    threads = None if cores is None or not on_cpu else max(1, cores // on_cpu)
    return [
        replace(setup, options=replace(setup.options, device=one), threads=threads if one == "cpu" else None)
        for one in devices
    ]
