"""From what the user typed to a running engine: names to files, files to weights, bytes to slots.

The order is that of what fails fastest: words first, then files, then memory, then weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from kvlite.cli.room import Room
from kvlite.errors import BrokenModel, DoesNotFit, UsageError

if TYPE_CHECKING:
    import torch

    from kvlite.catalog.files import ModelFiles
    from kvlite.catalog.names import ModelRef
    from kvlite.console import Console
    from kvlite.engine.engine import Engine
    from kvlite.engine.request import Sampling
    from kvlite.memory.plan import CachePlan, CacheSpec
    from kvlite.memory.report import ModelIdentity
    from kvlite.memory.shape import ModelShape
    from kvlite.models.loaded import LoadedModel
    from kvlite.text.template import ChatText


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What the shared options of chat, run and batch say about the model and its memory."""

    model: str
    kv_budget: str = "auto"
    kv_per_seq: str | None = None
    kv_policy: str = "heavy-hitter"
    kv_dtype: str = "auto"
    on_full: str | None = None  # as the policy does
    pin_system: bool = True
    prefill_chunk: int = 512
    quant: str = "none"
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    fuse: bool = True
    kernels: str = "auto"
    capture: bool | None = None  # where it is known to pay
    offline: bool = False
    think: str = "auto"


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is ready to answer: the engine, its text, how the model likes to be sampled, and what it is."""

    ref: ModelRef
    files: ModelFiles
    loaded: LoadedModel
    engine: Engine
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
        from kvlite.memory.report import ModelIdentity

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
        from kvlite.memory.prediction import DeviceKind, MemoryPlan, WeightFacts, cache_terms, other_terms

        loaded, plan, weights = self.loaded, self.plan, WeightFacts.of(self.files)
        device: DeviceKind = "cuda" if loaded.device.type == "cuda" else "cpu"
        others = other_terms(
            loaded.shape,
            weights,
            quant=loaded.quant,
            device=device,
            rows=plan.rows,
            chunk=plan.chunk,
            stored=self.engine.cache.stored,
        )
        return MemoryPlan((others[0], *cache_terms(plan), *others[1:]), None).predicted()


def find_files(options: ModelOptions, console: Console) -> tuple[ModelRef, ModelFiles]:
    """The model's files, downloaded where they are not here yet."""
    from kvlite.catalog.files import local_files
    from kvlite.catalog.names import resolve_model

    ref = resolve_model(options.model, revision=options.revision)
    return ref, local_files(ref, offline=options.offline, allow_pickle=options.allow_pickle, say=console.note)


def open_model(
    options: ModelOptions, console: Console, *, with_rows: bool = False, batch_size: int | None = None
) -> Opened:
    """Load the model and build its engine: one row of the whole budget, or `with_rows` as many as the budget holds.

    `batch_size` caps the rows, None leaves their number to the device. Raises the KvliteError that says what is wrong.
    """
    from kvlite.cache.policy import load_policy
    from kvlite.cli.heavy import load_engine

    load_engine()
    from kvlite.engine.capturing import is_wanted
    from kvlite.engine.engine import Engine
    from kvlite.engine.graphs import CudaGraphs

    policy = load_policy(options.kv_policy)
    policy.when_full(options.on_full)
    ref, files, loaded = load_model(options, console)
    room = Room(options, loaded.shape, free_bytes(loaded.device), loaded.device.type, with_rows, batch_size)
    spec = _surviving(room.specs(), loaded, console)
    engine = Engine(loaded, room.plan(spec), policy, spec.slot_format, options.on_full, options.kernels)
    if is_wanted(options.capture, loaded.device):
        engine.capture(CudaGraphs(loaded.device, engine.rows))
        if engine.step.obstacle is not None:
            console.warn(f"--capture: decode steps run eagerly: {engine.step.obstacle}")
    text = chat_text(files, loaded, options)
    return Opened(ref, files, loaded, engine, text, model_sampling(files.generation), options)


def _surviving(specs: Sequence[CacheSpec], loaded: LoadedModel, console: Console) -> CacheSpec:
    """The first of `specs` whose slots the model survives: without harm where there is another to take instead.

    Raises SlotsTooCoarse where the only one destroys what the model says.
    """
    from kvlite.models.canary import require_survival, try_format

    for spec in specs:
        if not spec.slot_format.is_coded:
            return spec
        if len(specs) == 1:
            canary = require_survival(loaded, spec.slot_format)
            (console.warn if canary.is_ill else console.detail)(str(canary))
            return spec
        canary = try_format(loaded, spec.slot_format)
        console.detail(f"--kv-dtype auto {'takes' if canary.is_harmless else 'passes over'} this: {canary.finding}")
        if canary.is_harmless:
            return spec
    raise AssertionError("the last format is the model's own dtype")


def load_model(options: ModelOptions, console: Console) -> tuple[ModelRef, ModelFiles, LoadedModel]:
    """Find the model's files and load the weights, without a cache. Raises the KvliteError that says what is wrong."""
    from kvlite.memory.format import dtype_name
    from kvlite.memory.shape import ModelShape

    _check_words(options)
    ref, files = find_files(options, console)
    dtype = dtype_name(options.dtype)
    shape = ModelShape.from_config(files.config, dtype=dtype, stored_dtype=files.stored_dtype)
    return ref, files, _load(files, options, shape)


def chat_text(files: ModelFiles, loaded: LoadedModel, options: ModelOptions) -> ChatText:
    """The way between messages and the model's ids."""
    from kvlite.text.template import ChatText

    return ChatText(loaded.tokenizer, generation=files.generation, think=options.think)


def model_name(ref: ModelRef, files: ModelFiles) -> str:
    """`repo@sha`, or the folder's or alias's name."""
    if files.repo is None:
        return str(ref)
    return f"{files.repo}@{(files.revision or 'main')[:7]}"


def weights_identity(ref: ModelRef, files: ModelFiles) -> str:
    """What work that is resumed must find again; the built-in model is its weights, wherever kvlite is installed."""
    if ref.is_demo:
        return f"{ref}@{sha256((files.folder / 'model.safetensors').read_bytes()).hexdigest()[:12]}"
    return f"{files.repo}@{files.revision}" if files.repo else str(files.folder)


def _check_words(options: ModelOptions) -> None:
    """Refuse what is misspelt before any file is looked for."""
    from kvlite.memory.budget import Budget
    from kvlite.memory.format import dtype_name, slot_format

    for budget in (options.kv_budget, options.kv_per_seq):
        if budget is not None:
            Budget.parse(budget)
    slot_format(options.kv_dtype, "float32")
    dtype_name(options.dtype)


def _load(files: ModelFiles, options: ModelOptions, shape: ModelShape) -> LoadedModel:
    """Load the weights, unless what they will take as loaded is more than is free."""
    from kvlite.memory.format import human_bytes
    from kvlite.memory.prediction import WeightFacts, weight_term
    from kvlite.models.loading import LoadOptions, load, pick_device

    device = pick_device(options.device)
    free = free_bytes(device)
    needed = weight_term(shape, WeightFacts.of(files), options.quant).predicted_bytes
    if needed is not None and needed > free:
        raise DoesNotFit(
            f"the weights take {human_bytes(needed)} and {human_bytes(free)} are free on {device}; "
            f"give {'--4bit or ' if options.quant == 'none' else ''}a smaller model"
        )
    wanted = LoadOptions(
        dtype=options.dtype if options.dtype != "auto" else (files.unnamed_dtype or "auto"),
        device=str(device),
        quant=options.quant,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        fuse=options.fuse,
    )
    return load(files.folder, files.config, wanted)


def free_bytes(device: torch.device) -> int:
    """Memory left on the device: the driver's word on CUDA, this machine's (or its cgroup's) elsewhere."""
    import torch

    from kvlite.memory.host import available_bytes

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


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
