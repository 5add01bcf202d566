"""Select the files that hold a model's weights, and measure these by their safetensors headers; no tensor is read.

A safetensors file is 8 bytes of header length (little-endian), the header as JSON, then the data the header points
into: https://huggingface.co/docs/safetensors/index#format.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from kvlite.errors import BrokenModel, ModelNotFound, UnsupportedModel
from kvlite.gguf.header import models_among
from kvlite.memory.prediction import Weights

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
_LAYER = re.compile(r"(?:model|transformer|backbone)\.(?:language_model\.)?(?:layers|h)\.(\d+)\.")
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the format's own limit, so that a damaged length is not read into memory
_AGAIN = "get the file again (a model of the Hub: `kvlite rm`, then `kvlite pull`)"
_USUAL_QUANT = "Q4_K_M"  # what ollama and llama.cpp take where none is named
_SMALL_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_SMALL_NAMES = ("README.md", "LICENSE", "LICENSE.md", "NOTICE", "USE_POLICY.md")


def weight_files(folder: Path) -> list[str]:
    """List the files that hold the weights, safetensors before pickle; empty without any.

    Raises BrokenModel when an index cannot be read. The files it names need not exist.
    """
    for single, index in ((SINGLE, INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / single).is_file():
            return [single]
        if (folder / index).is_file():
            return sorted(set(read_index(folder / index).values()))
    return []


def small_files(names: Iterable[str]) -> list[str]:
    """Select everything but the weights: configs, tokenizer, template, model card, licence; no subfolders."""
    return [name for name in names if "/" not in name and (name.endswith(_SMALL_SUFFIXES) or name in _SMALL_NAMES)]


def weight_names(
    names: Iterable[str], *, model: str, allow_pickle: bool = False, base_model: str | None = None
) -> list[str]:
    """Select the files to load weights from: safetensors, else pickles if those are allowed.

    `model` and `base_model` (what the model was converted from) go into the messages. Raises UnsupportedModel for
    pickle-only and adapter-only models, BrokenModel when there are no weights at all.
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
    """Raise UnsupportedModel, with a model to use instead, where there is an adapter."""
    if any(name.startswith("adapter_model.") for name in names):
        instead = base_model or "its base model"
        raise UnsupportedModel(f"{model} is an adapter, not a whole model; run {instead} with --adapter {model}")


def gguf_files(names: Collection[str], quant: str | None, *, model: str) -> list[str]:
    """Select the parts of one GGUF file: that of `quant`; without one, where there are no other weights, the usual one.

    Returns none where other weights are meant. Raises ModelNotFound, naming what there is, where none or several fit.
    """
    if quant is None and any(name in (SINGLE, INDEX) or name.startswith("pytorch_model") for name in names):
        return []
    files = models_among(names)
    if quant is None and len(files) < 2:
        return next(iter(files.values()), [])
    (meant,) = models_among([f"{(quant or _USUAL_QUANT).removesuffix('.gguf')}.gguf"]) or ("",)
    ends = re.compile(rf"(^|[-./_]){re.escape(meant)}(/[^/]+)?$", re.IGNORECASE)
    fitting = [stem for stem in files if ends.search(stem)]
    if len(fitting) != 1:
        offered = ", ".join(files[stem][0] for stem in fitting or files) or "none"
        why = f"{'several GGUF files' if fitting else 'no GGUF file'} {quant!r}" if quant else "several GGUF files"
        raise ModelNotFound(f"{model} has {why}; of {offered:.600} name one, as in org/name:Q8_0 or ./name-Q8_0.gguf")
    return files[fitting[0]]


def read_weights(folder: Path, *, is_composite: bool = False) -> Weights | None:
    """Measure the safetensors weights in `folder`, of a composite its text part's; None when it has none or pickles.

    Raises BrokenModel, naming the file, for a missing shard, a damaged header and a truncated file.
    """
    names = weight_files(folder)
    for name in names:
        if not (folder / name).is_file():
            raise BrokenModel(f"{folder / name} is missing, though the index names it; {_AGAIN}")
    if not names or not names[0].endswith(".safetensors"):
        return None
    headers = {name: _read_header(folder / name) for name in names}
    if names != [SINGLE]:
        for tensor, shard in read_index(folder / INDEX).items():
            if tensor not in headers[shard]:
                raise BrokenModel(f"{folder / shard} lacks tensor {tensor!r}, which {INDEX} places there; {_AGAIN}")
    tensors = {name: tensor for header in headers.values() for name, tensor in header.items()}
    return weigh((text_part(tensors) if is_composite else tensors).values())


def tensor_names(folder: Path) -> list[str]:
    """List the names of all tensors in a folder's safetensors files; empty where it has none."""
    if (folder / SINGLE).is_file():
        return list(_read_header(folder / SINGLE))
    return list(read_index(folder / INDEX)) if (folder / INDEX).is_file() else []


def count_layers(names: Iterable[str]) -> int | None:
    """Count the layers of a text model, one after another, that have any tensor; None where no name tells of layers."""
    held = {int(found[1]) for name in names if (found := _LAYER.match(name))}
    return next(number for number in range(len(held) + 1) if number not in held) if held else None


def text_names(names: Iterable[str]) -> tuple[str, str]:
    """Find what stands before the names of the text model in a larger one: before its body, and before its head.

    Raises BrokenModel where there is no embedding of tokens, or more than one.
    """
    names = list(names)
    bodies = [name.removesuffix(_EMBEDDING) for name in names if name.endswith(_EMBEDDING)]
    if len(bodies) != 1:
        raise BrokenModel(f"the weights hold {len(bodies)} tensors called {_EMBEDDING}, where the text part has one")
    heads = [name.removesuffix(_HEAD) for name in names if name.endswith(_HEAD)]
    return bodies[0], (heads or [""])[0]


def text_part(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Select the tensors of the text model in a larger one, by name."""
    body, head = text_names(tensors)
    return {name: one for name, one in tensors.items() if name.startswith(body) or name == f"{head}{_HEAD}"}


def weigh(tensors: Iterable[Mapping[str, Any]]) -> Weights:
    """Sum tensors, each the dtype, shape and data_offsets of a header."""
    by_dtype: Counter[str] = Counter()
    parameters = 0
    for tensor in tensors:
        start, end = tensor["data_offsets"]
        by_dtype[tensor["dtype"]] += end - start
        parameters += math.prod(tensor["shape"])
    return Weights(by_dtype.total(), parameters, by_dtype)


def read_index(path: Path) -> dict[str, str]:
    """Read the map from tensor to shard of an index file. Raises BrokenModel when it is not one."""
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        weight_map = None
    except OSError as error:
        raise BrokenModel(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenModel(f"{path} is not an index of shards (no readable weight_map); {_AGAIN}")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:  # a shard lies beside its index, never elsewhere
            raise BrokenModel(f"{path} names a shard {shard!r}, which is no file name; {_AGAIN}")
    return weight_map


def _read_header(path: Path) -> dict[str, dict[str, Any]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _LONGEST_HEADER):
                raise BrokenModel(f"{path} is truncated or no safetensors file ({size:,} bytes); {_AGAIN}")
            header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise BrokenModel(f"{path} has a damaged safetensors header; {_AGAIN}") from error
    except OSError as error:
        raise BrokenModel(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(header, dict):
        raise BrokenModel(f"{path} has a damaged safetensors header; {_AGAIN}")
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if not _is_tensor(tensor):
            raise BrokenModel(f"{path} describes tensor {name!r} wrongly; {_AGAIN}")
    promised = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    held = size - _LENGTH_BYTES - length
    if promised > held:
        raise BrokenModel(f"{path} is truncated: {held:,} of {promised:,} bytes of tensors are there; {_AGAIN}")
    return header


def _is_tensor(value: object) -> bool:
    match value:
        case {"dtype": str(), "shape": list(shape), "data_offsets": [start, end]}:
            return all(type(count) is int and count >= 0 for count in (*shape, start, end)) and start <= end
    return False
