"""Select the files that make up a model kvlite can load. Knows names only, opens nothing."""

from collections.abc import Iterable

from kvlite.catalog.weights import INDEX, PICKLE, SINGLE
from kvlite.errors import BrokenModel, UnsupportedModel

_SMALL_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_SMALL_NAMES = ("README.md", "LICENSE", "LICENSE.md", "NOTICE", "USE_POLICY.md")


def small_files(names: Iterable[str]) -> list[str]:
    """Select everything but the weights: configs, tokenizer, template, model card, licence; no subfolders."""
    return [name for name in names if "/" not in name and (name.endswith(_SMALL_SUFFIXES) or name in _SMALL_NAMES)]


def weight_names(
    names: Iterable[str], *, model: str, allow_pickle: bool = False, base_model: str | None = None
) -> list[str]:
    """Select the files to load weights from: safetensors, else pickles if those are allowed.

    `model` and `base_model` (what the model was converted from) go into the messages. Raises UnsupportedModel for
    pickle-only, GGUF-only and adapter-only models, BrokenModel when there are no weights at all.
    """
    top = sorted(name for name in names if "/" not in name)
    if SINGLE in top:
        return [SINGLE]
    if INDEX in top:  # consolidated files repeat the shards in their makers' own format
        return [name for name in top if name.endswith(".safetensors") and not name.startswith("consolidated")]
    pickles = [name for name in top if name.startswith("pytorch_model") and name.endswith(".bin")]
    if pickles and allow_pickle:
        return [PICKLE] if PICKLE in pickles else pickles
    if pickles:
        raise UnsupportedModel(
            f"{model} has only pickle weights ({pickles[0]}), which can run code when they are loaded; use a "
            "safetensors conversion, or --allow-pickle if you trust its authors"
        )
    refuse_other_formats(names, model=model, base_model=base_model)
    raise BrokenModel(f"{model} has no weights that kvlite loads ({SINGLE} or {INDEX})")


def refuse_other_formats(names: Iterable[str], *, model: str, base_model: str | None = None) -> None:
    """Raise UnsupportedModel, with a model to use instead, where there are GGUF files or an adapter."""
    if any(name.lower().endswith(".gguf") for name in names):
        instead = base_model or "the safetensors repository it was made from"
        raise UnsupportedModel(f"{model} has only GGUF files, which kvlite does not load; use {instead}")
    if any(name.startswith("adapter_model.") for name in names):
        instead = base_model or "its base model"
        raise UnsupportedModel(f"{model} is an adapter, not a whole model; merge it into {instead} first")
