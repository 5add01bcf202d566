"""`kvlite doctor`: what is installed here, and what was found out about models on this machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import without
from kvlite.errors import UsageError
from kvlite.flags import option
from kvlite.options import ModelOptions

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.llm.text_model import TextModel
    from kvlite.record.findings import Circumstances
    from kvlite.record.trials import Trial
    from kvlite.record.verdicts import Verdict

_OF_AN_ANSWER = ("think", "pin_system", "prefill_chunk", "on_full", "capture", "speculate")
_OF_THE_BUDGET = ("kv_budget", "kv_per_seq", "kv_policy", "kv_dtype")
_MAY_BE_MISSING = ("bitsandbytes", "triton", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """The question to the doctor beside the model."""

    again: bool = option(False, from_settings=False, help="Find out anew what is known of MODEL.")


def doctor(
    given: DoctorOptions,
    options: Annotated[ModelOptions, without(*_OF_AN_ANSWER, *_OF_THE_BUDGET)],
    call: Invocation,
) -> None:
    """Say what is installed here and what is known of models; with MODEL, load it and say what becomes of it.

    Exit code 0 where MODEL runs, else that of what stands in its way.
    """
    from kvlite.record.trials import Trials
    from kvlite.record.verdicts import Verdicts

    if given.again and options.model is None:
        raise UsageError("--again needs the model to look at; name it, as in `kvlite doctor demo --again`")
    out, known = call.console, Verdicts().known()
    trials = [(f"{about['kernels']}, {about['dtype']}", about, trial) for about, trial in Trials().known()]
    if options.model is not None:
        model = _examined(options, given.again, out)
        known, trials = [model.verdict()], [(what, {}, trial) for what, trial in model.kernels()]
    told: dict[str, Any] = {
        "environment": environment(),
        "verdicts": [_record(about, verdict) for about, verdict in known],
        "trials": [{"kernels": what, **_record(about, trial)} for what, about, trial in trials],
    }
    if out.as_json:
        out.json(told, indent=2)
        return
    if not out.quiet:
        for label, value in told["environment"].items():
            out.line(f"{label:<16}{value}")
        out.line()
    if options.model is not None:
        for label, value in _lines(*known[0]):
            out.line(f"{label:<16}{value}")
        for what, _, trial in trials:
            out.line(f"{'kernels':<16}{what}: {trial}")
    elif known:
        rows = [
            (*(about.get(name, "") for name in ("model", "dtype", "device")), ", ".join(verdict.fused), verdict.when)
            for about, verdict in known
        ]
        out.table(("MODEL", "DTYPE", "DEVICE", "FUSED", "FOUND"), rows)
    if options.model is None and trials:
        out.line()
        rows = [(what, about["device"], str(trial), trial.when) for what, about, trial in trials]
        out.table(("TRITON KERNELS ON", "DEVICE", "TRIED", "FOUND"), rows)


def environment() -> dict[str, str]:
    """Versions, processor, memory and GPUs, in words. Loads no torch."""
    from kvlite.memory.format import human_bytes
    from kvlite.memory.host import available_bytes, usable_cores
    from kvlite.record.measure import device_reading, ram_total_bytes, versions

    found = {**dict.fromkeys(_MAY_BE_MISSING, "not installed"), **versions()}
    cores, free, total = usable_cores(), available_bytes(), ram_total_bytes()
    found["processor"] = f"{platform.processor() or platform.machine()}, {cores} cores to use"
    found["memory"] = f"{human_bytes(total)}, {human_bytes(free)} free"
    index = 0
    while (gpu := device_reading(index)) is not None:
        memory = f"{human_bytes(gpu.total_bytes)}, {human_bytes(gpu.free_bytes)} free"
        found[f"cuda:{index}"] = f"{gpu.name}, {memory}, driver {gpu.driver}"
        index += 1
    return found


def _examined(options: ModelOptions, again: bool, out: Console) -> TextModel:
    """The model, loaded, of which all is found out by then, slots of fewer bits included."""
    from kvlite.llm.spec import RunSpec
    from kvlite.llm.text_model import TextModel, import_engine
    from kvlite.memory.format import FORMATS
    from kvlite.record.verdicts import Verdicts

    spec = RunSpec.of(options)
    files = spec.files(out.note)
    import_engine()
    model = TextModel.load(spec, out, files, Verdicts(again=again))
    for stored in FORMATS.values():
        if stored.is_quantised:
            model.effect_of(stored)
    return model


def _record(about: Circumstances, found: Verdict | Trial) -> dict[str, Any]:
    return {"about": dict(about), **asdict(found)}


def _lines(about: Circumstances, verdict: Verdict) -> Iterator[tuple[str, str]]:
    yield "model", f"{about['model']}, {about['dtype']}" + ("" if about["quant"] == "none" else f", {about['quant']}")
    yield "gate", "attention goes through the slots, and the logits are the model's own"
    yield "keys", "stay where they are" if verdict.rotations is None else "can be moved past the end of the window"
    yield "fused", ", ".join(verdict.fused) or "nothing"
    for reason in verdict.refused:
        yield "not fused", reason
    for name, (nats, kept) in verdict.effects.items():
        yield f"{name} slots", f"{nats:.2g} nats a token, {kept:.0%} of first choices kept"
    yield "found", verdict.when or "just now"
