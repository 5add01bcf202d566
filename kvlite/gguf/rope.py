"""Numbers of a GGUF header, and the rotary parameters they make: how positions beyond the original are scaled."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from kvlite.errors import BrokenModel, UnsupportedModel
from kvlite.gguf.header import Header

Config = dict[str, Any]

_UNREAD: dict[str, Config] = {
    "default": {"attn_factor": 1.0},
    "linear": {"attn_factor": 1.0},
    "llama3": {"attn_factor": 1.0, "factor": 1.0},
    "longrope": {"factor": 1.0},
    "yarn": {"yarn_ext_factor": 1.0, "yarn_log_multiplier": 0.0},
}
"""Keys under `rope.scaling` that transformers has no parameter for, by type, with the value that changes nothing."""


def wanted(header: Header, key: str, default: Any = None) -> Any:
    """A number that every model has; where the file has one for each layer, the one that all layers share."""
    value = header.about(key, default)
    if value is None:
        raise BrokenModel(f"{header.path.name} lacks {header.architecture}.{key}; it is damaged or no whole model")
    found = one_of(header, key, set(value)) if isinstance(value, (list, tuple)) else value
    if isinstance(found, int) and found < 1:
        raise BrokenModel(f"{header.path.name} says that {header.architecture}.{key} is {found}; it is damaged")
    return found


def by_layer(header: Header, key: str) -> list[Any]:
    """A number for each layer, where the file may have one for all."""
    value, layers = header.about(key), wanted(header, "block_count")
    if not isinstance(value, (list, tuple)):
        return [wanted(header, key)] * layers
    if len(value) != layers:
        raise BrokenModel(f"{header.path.name} has {len(value)} {key} for {layers} layers; download it again")
    return list(value)


def one_of(header: Header, key: str, values: Collection[Any]) -> Any:
    """The only one of the values that layers have."""
    if len(values) != 1:
        raise UnsupportedModel(f"{header.path.name} has {key} that differ by layer, which kvlite does not read")
    return next(iter(values))


def decimal(value: float) -> float:
    """The decimal that was rounded to the float32 in the file: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def rope_of(header: Header) -> Config:
    """Rotary parameters. A factor without a kind scales linearly, as in llama.cpp."""
    rope: Config = {"rope_type": "default", "rope_theta": decimal(header.about("rope.freq_base", 10000.0))}
    kind = header.about("rope.scaling.type", "linear")
    factor = decimal(header.about("rope.scaling.factor", header.about("rope.scale_linear", 0.0))) or 1.0
    if kind == "longrope" or "rope_factors_long.weight" in header.tensors:
        rope |= _longrope(header)
    elif "rope_freqs.weight" in header.tensors:
        rope |= _llama3(header, rope["rope_theta"])
    elif kind == "yarn":
        rope |= _yarn(header, factor)
    elif kind == "linear" and factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind not in ("none", "linear"):
        raise UnsupportedModel(f"{header.path.name} scales positions by {kind!r}, which kvlite does not read")
    for key, without in _UNREAD[rope["rope_type"]].items():
        if (value := header.about(f"rope.scaling.{key}", without)) != without:
            raise UnsupportedModel(
                f"{header.path.name} has rope.scaling.{key} {value} beside {rope['rope_type']} positions, "
                f"which kvlite does not read"
            )
    return rope


def _longrope(header: Header) -> Config:
    rope: Config = {"rope_type": "longrope", "original_max_position_embeddings": _original(header)}
    if (attention := header.about("rope.scaling.attn_factor")) is not None:
        rope["attention_factor"] = attention
    return rope | {f"{name}_factor": _divisors(header, f"rope_factors_{name}.weight") for name in ("long", "short")}


def _divisors(header: Header, name: str) -> list[float]:
    """Numbers that frequencies are divided by; none where only the header has been fetched, to plan and to check."""
    tensor = header.tensors.get(name)
    return header.floats(name) if tensor is None or tensor.file.is_file() else []


def _yarn(header: Header, factor: float) -> Config:
    """YaRN. In the file `yarn_attn_factor` is transformers' attention_factor, and `attn_factor` multiplies it."""
    rope: Config = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": _original(header)}
    for name in ("beta_fast", "beta_slow"):
        if (value := header.about(f"rope.scaling.yarn_{name}")) is not None:
            rope[name] = decimal(value)
    usual = 0.1 * math.log(max(factor, 1.0)) + 1.0
    attention = header.about("rope.scaling.yarn_attn_factor", usual) * header.about("rope.scaling.attn_factor", 1.0)
    return rope if attention == usual else rope | {"attention_factor": attention}


def rotated_part(header: Header, usually: float) -> float:
    """The share of frequencies that turn at all, where the others are divided by a number beyond all positions."""
    held = _divisors(header, "rope_freqs.weight") if "rope_freqs.weight" in header.tensors else []
    turning = held.count(1.0)
    if any(divisor != 1.0 for divisor in held[:turning]) or any(divisor < 1e20 for divisor in held[turning:]):
        raise UnsupportedModel(f"{header.path.name} has positions unlike Gemma 4's, which kvlite does not read")
    return turning / len(held) if held else usually


def _original(header: Header) -> int:
    """Positions before scaling."""
    return int(wanted(header, "rope.scaling.original_context_length", header.about("context_length")))


def _llama3(header: Header, theta: float) -> Config:
    """The scaling of Llama 3.1 and later, of which the file holds only what each frequency is divided by."""
    held = _divisors(header, "rope_freqs.weight")
    factor, original = max(held, default=1.0), 8192
    for index, divisor in enumerate(held):
        turns = original * theta ** (-index / len(held)) / (2 * math.pi)
        smooth = min(1.0, max(0.0, (turns - 1.0) / 3.0))
        if abs(divisor * ((1 - smooth) / factor + smooth) - 1) > 1e-3:
            raise UnsupportedModel(f"{header.path.name} scales positions unlike Llama 3, which kvlite does not read")
    rope: Config = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return rope | {"original_max_position_embeddings": original}
