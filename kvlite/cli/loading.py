"""From what the user typed to weights: names to files, files to a loaded model without a cache.

What fails fastest comes first: words, then files, then memory, then weights.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from kvlite.errors import DoesNotFit

if TYPE_CHECKING:
    import torch

    from kvlite.catalog.files import ModelFiles
    from kvlite.catalog.names import ModelRef
    from kvlite.console import Console
    from kvlite.memory.shape import ModelShape
    from kvlite.models.loaded import LoadedModel
    from kvlite.options import ModelOptions
    from kvlite.text.template import ChatText


def find_files(options: ModelOptions, console: Console) -> tuple[ModelRef, ModelFiles]:
    """The model's files, downloaded where they are not here yet; misspelt options are refused first."""
    from kvlite.catalog.files import local_files
    from kvlite.catalog.names import resolve_model

    _check_words(options)
    ref = resolve_model(options.model, revision=options.revision)
    return ref, local_files(ref, offline=options.offline, allow_pickle=options.allow_pickle, say=console.note)


def load_model(
    options: ModelOptions, console: Console, found: tuple[ModelRef, ModelFiles] | None = None
) -> tuple[ModelRef, ModelFiles, LoadedModel]:
    """Find the model's files, if they are not `found`, and load the weights, without a cache.

    Raises the KvliteError that says what is wrong.
    """
    from kvlite.memory.format import dtype_name
    from kvlite.memory.shape import ModelShape

    ref, files = found or find_files(options, console)
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
    from kvlite.cache.policy import load_policy
    from kvlite.memory.budget import Budget
    from kvlite.memory.format import dtype_name, slot_format

    for budget in (options.kv_budget, options.kv_per_seq):
        if budget is not None:
            Budget.parse(budget)
    slot_format(options.kv_dtype, "float32")
    dtype_name(options.dtype)
    load_policy(options.kv_policy).when_full(options.on_full)


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
        kernels=options.kernels,
    )
    return load(files.folder, files.config, wanted)


def free_bytes(device: torch.device) -> int:
    """Memory left on the device: the driver's word on CUDA, this machine's (or its cgroup's) elsewhere."""
    import torch

    from kvlite.memory.host import available_bytes

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()
