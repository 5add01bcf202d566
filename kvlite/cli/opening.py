"""From loaded weights to a running engine: bytes to slots, and what comes with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvlite.cli.loading import chat_text, free_bytes, load_model, model_name
from kvlite.cli.room import fit_of
from kvlite.errors import BrokenModel, UsageError
from kvlite.options import ModelOptions

if TYPE_CHECKING:
    from kvlite.catalog.files import ModelFiles
    from kvlite.catalog.names import ModelRef
    from kvlite.console import Console
    from kvlite.engine.engine import Engine
    from kvlite.engine.request import Sampling
    from kvlite.memory.fit import Fit
    from kvlite.memory.plan import CachePlan, CacheSpec
    from kvlite.models.loaded import LoadedModel
    from kvlite.record.schema import ModelIdentity
    from kvlite.text.template import ChatText


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is ready to answer: the engine, its text, how the model likes to be sampled, and what it is."""

    ref: ModelRef
    files: ModelFiles
    loaded: LoadedModel
    engine: Engine
    fit: Fit
    text: ChatText
    sampling: Sampling
    options: ModelOptions

    @property
    def name(self) -> str:
        """`repo@sha`, or the folder's or alias's name."""
        return model_name(self.ref, self.files)

    @property
    def plan(self) -> CachePlan:
        return self.engine.plan

    def identity(self) -> ModelIdentity:
        """Which weights these are, for the run record."""
        from kvlite.record.schema import ModelIdentity

        return ModelIdentity(
            alias=self.ref.alias,
            repo=self.files.repo or str(self.files.folder),
            revision=self.files.revision,
            params=self.loaded.num_parameters,
            quant=self.loaded.quant,
            dtype=self.loaded.dtype_name,
            license=self.files.license,
            fused=list(self.loaded.fused),
        )

    def predicted(self) -> dict[str, int]:
        """What `kvlite plan` says of this run, by term."""
        return self.fit.memory(self.plan).predicted()


def open_model(
    options: ModelOptions,
    console: Console,
    *,
    found: tuple[ModelRef, ModelFiles] | None = None,
    with_rows: bool = False,
    batch_size: int | None = None,
) -> Opened:
    """Load the model and build its engine: one row of the whole budget, or `with_rows` as many as the budget holds.

    `found` are its files, if they were looked for already. `batch_size` caps the rows, None leaves their number to the
    device. Raises the KvliteError that says what is wrong.
    """
    from kvlite.cache.policy import load_policy
    from kvlite.cli.heavy import load_engine

    load_engine()
    from kvlite.engine.capturing import is_wanted
    from kvlite.engine.engine import Engine
    from kvlite.engine.graphs import CudaGraphs
    from kvlite.memory.budget import Budget
    from kvlite.memory.prediction import WeightFacts
    from kvlite.models.loading import pick_device

    policy = load_policy(options.kv_policy)
    policy.when_full(options.on_full)
    captures = is_wanted(options.capture, pick_device(options.device))  # refused before the weights are read
    ref, files, loaded = load_model(options, console, found)
    fit = fit_of(
        options,
        loaded.shape,
        free_bytes(loaded.device),
        loaded.device.type,
        weights=WeightFacts.of(files),
        is_loaded=True,
        with_rows=with_rows,
        batch_size=batch_size,
    )
    budget = Budget.parse(options.kv_budget)
    spec = _surviving(fit.specs(budget), loaded, console)
    fit = replace(fit, spec=spec)
    engine = Engine(loaded, fit.cache(budget), policy, spec.slot_format, options.on_full, options.kernels)
    if captures:
        engine.capture(CudaGraphs(loaded.device, engine.rows), console.warn)
    text = chat_text(files, loaded, options)
    return Opened(ref, files, loaded, engine, fit, text, model_sampling(files.generation), options)


def _surviving(specs: Sequence[CacheSpec], loaded: LoadedModel, console: Console) -> CacheSpec:
    """The first of `specs` whose slots the model survives: without harm where there is another to take instead.

    Raises SlotsTooCoarse where the only one destroys what the model says.
    """
    from kvlite.models.kv_quant_check import require_survival, try_format

    for spec in specs:
        if not spec.slot_format.is_coded:
            return spec
        if len(specs) == 1:
            effect = require_survival(loaded, spec.slot_format)
            (console.warn if effect.is_noticeable else console.detail)(str(effect))
            return spec
        effect = try_format(loaded, spec.slot_format)
        if effect.is_harmless:
            console.detail(f"--kv-dtype auto takes {spec.slot_format.name}: {effect.finding}")
            return spec
        console.note(f"--kv-dtype auto passes over {spec.slot_format.name}, fewer tokens are kept: {effect.finding}")
    raise AssertionError("the last format is the model's own dtype")


def model_sampling(generation: Mapping[str, Any]) -> Sampling:
    """How generation_config.json wants the model sampled; greedy where it does not ask for sampling.

    Raises BrokenModel where a value cannot be.
    """
    from kvlite.engine.request import Sampling

    kinds: dict[str, type] = {"repetition_penalty": float}
    if generation.get("do_sample"):
        kinds |= {"temperature": float, "top_k": int, "top_p": float, "min_p": float}
    given: dict[str, Any] = {"temperature": 1.0} if "temperature" in kinds else {}
    try:
        for name, kind in kinds.items():
            if generation.get(name) is not None:
                given[name] = kind(generation[name])
        return Sampling(**given)
    except (ValueError, TypeError, OverflowError) as error:
        raise BrokenModel(f"generation_config.json: {name} is {generation[name]!r}; expected a number") from error
    except UsageError as error:
        raise BrokenModel(f"generation_config.json: {error}") from error
