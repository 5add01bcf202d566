"""From what the user typed to a running engine: names to files, files to weights, bytes to slots.

The order is that of what fails fastest: words first, then files, then memory, then weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvlite.errors import BrokenModel, DoesNotFit, UsageError

if TYPE_CHECKING:
    import torch

    from kvlite.cache.policy import Policy
    from kvlite.catalog.files import ModelFiles
    from kvlite.catalog.names import ModelRef
    from kvlite.console import Console
    from kvlite.engine.engine import Engine
    from kvlite.engine.request import Sampling
    from kvlite.memory.budget import Budget
    from kvlite.memory.format import SlotFormat
    from kvlite.memory.plan import CachePlan
    from kvlite.memory.shape import ModelShape
    from kvlite.models.loaded import LoadedModel
    from kvlite.text.template import ChatText

ROWS_ON_CPU = 8
ROWS_ON_GPU = 64
"""Rows of a batch where the user names no number and the budget holds as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What the shared options of chat, run and batch say about the model and its memory."""

    model: str
    kv_budget: str = "auto"
    kv_per_seq: str | None = None
    kv_policy: str = "heavy-hitter"
    kv_dtype: str = "auto"
    on_full: str = "evict"
    pin_system: bool = True
    prefill_chunk: int = 512
    quant: str = "none"
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
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
        if self.files.repo is None:
            return str(self.ref)
        return f"{self.files.repo}@{(self.files.revision or 'main')[:7]}"

    @property
    def plan(self) -> CachePlan:
        return self.engine.plan


def open_model(
    options: ModelOptions, console: Console, *, batch_size: int | None = 1, with_rows: bool = False
) -> Opened:
    """Load the model and build its engine: one row of the whole budget, or `with_rows` as many as the budget holds.

    `batch_size` caps the rows, None leaves their number to the device. Raises the KvliteError that says what is wrong.
    """
    from kvlite.cache.policy import load_policy
    from kvlite.catalog.files import local_files
    from kvlite.catalog.names import resolve_model
    from kvlite.memory.budget import Budget
    from kvlite.memory.format import slot_format
    from kvlite.memory.shape import ModelShape

    budget = Budget.parse(options.kv_budget)
    per_sequence = Budget.parse(options.kv_per_seq) if options.kv_per_seq else None
    policy = load_policy(options.kv_policy)
    ref = resolve_model(options.model, revision=options.revision)
    files = local_files(ref, offline=options.offline, allow_pickle=options.allow_pickle, say=console.note)
    shape = ModelShape.from_config(files.config, dtype=files.unnamed_dtype)
    slot_format(options.kv_dtype, shape.dtype)
    loaded = _load(files, options)
    stored = slot_format(options.kv_dtype, str(loaded.dtype).removeprefix("torch."))
    plan = _plan(loaded.shape, budget, per_sequence, policy, stored, loaded, options, batch_size if with_rows else 1)
    return _assemble(ref, files, loaded, plan, policy, stored, options)


def _load(files: ModelFiles, options: ModelOptions) -> LoadedModel:
    from kvlite.memory.format import human_bytes
    from kvlite.models.loading import LoadOptions, load, pick_device

    device = pick_device(options.device)
    free = _free_bytes(device)
    if options.quant == "none" and files.weight_bytes is not None and free is not None and files.weight_bytes > free:
        raise DoesNotFit(
            f"the weights take {human_bytes(files.weight_bytes)} and {human_bytes(free)} are free on {device}; "
            "give --4bit or a smaller model"
        )
    wanted = LoadOptions(
        dtype=options.dtype if options.dtype != "auto" else (files.unnamed_dtype or "auto"),
        device=str(device),
        quant=options.quant,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
    )
    return load(files.folder, files.config, wanted)


def _free_bytes(device: torch.device) -> int | None:
    """Memory left on the device: the driver's word on CUDA, this machine's (or its cgroup's) elsewhere."""
    import torch

    from kvlite.memory.host import available_bytes

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


def _plan(
    shape: ModelShape,
    budget: Budget,
    per_sequence: Budget | None,
    policy: Policy,
    stored: SlotFormat,
    loaded: LoadedModel,
    options: ModelOptions,
    batch_size: int | None,
) -> CachePlan:
    from kvlite.memory.plan import plan_cache
    from kvlite.memory.rows import plan_rows

    shared: dict[str, Any] = {
        "slot_format": stored,
        "state_bytes_per_slot": policy.state_bytes_per_slot,
        "free_bytes": _free_bytes(loaded.device),
        "protected_slots": policy.min_slots(),
        "evicts": policy.evicts and options.on_full == "evict",
        "chunk_limit": options.prefill_chunk,
    }
    if batch_size == 1 and per_sequence is None:
        return plan_cache(shape, budget, rows=1, **shared)
    most_rows = batch_size or (ROWS_ON_GPU if loaded.device.type == "cuda" else ROWS_ON_CPU)
    if loaded.state is not None:
        most_rows = 1  # their state would take in the padding of their neighbours
    return plan_rows(shape, budget, per_sequence, most_rows=most_rows, **shared)


def _assemble(
    ref: ModelRef,
    files: ModelFiles,
    loaded: LoadedModel,
    plan: CachePlan,
    policy: Policy,
    stored: SlotFormat,
    options: ModelOptions,
) -> Opened:
    import torch

    from kvlite.engine.engine import Engine
    from kvlite.text.template import ChatText

    engine = Engine(loaded, plan, policy, getattr(torch, stored.name), options.on_full)
    text = ChatText(loaded.tokenizer, generation=files.generation, think=options.think)
    return Opened(ref, files, loaded, engine, text, model_sampling(files.generation), options)


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
