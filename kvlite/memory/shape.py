"""The sizes of a model that memory follows from, layer by layer, read from its config.json alone. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from kvlite.errors import BrokenModel, UnsupportedModel
from kvlite.memory.families import (
    FAMILIES,
    NOT_HELD,
    TEXT_TYPES,
    Family,
    class_defaults,
    refuse_unknown_part,
)
from kvlite.memory.fields import Fields
from kvlite.memory.format import DTYPE_BYTES, FORMATS, SlotFormat
from kvlite.memory.layer_types import CONV, FULL, HYBRID, LINEAR, MLP, MOE, SLIDING
from kvlite.memory.positions import max_positions, positions, rope_type, short_positions

_OLD_TYPES = {"attention": FULL, "mamba": LINEAR, "mamba2": LINEAR}
_MOST_LAYERS = 10_000
_LAYERS = ("num_hidden_layers", "n_layer")
_HIDDEN = ("hidden_size", "n_embd")
_QUERY_HEADS = ("num_attention_heads", "n_head")


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer: `kv_heads` KV heads of `k_dim` + `v_dim` elements a token, the newest `window` tokens if it slides.

    `state_bytes` are constant bytes per row that do not follow from the context (convolution, SSM, linear attention).
    """

    kind: Literal["full", "sliding", "state"]
    kv_heads: int
    k_dim: int
    v_dim: int
    window: int | None = None
    state_bytes: int = 0

    def slots(self, budget_slots: int) -> int:
        """Slots per KV head of this layer where a full layer has `budget_slots`."""
        if self.kv_heads == 0:
            return 0
        return budget_slots if self.window is None else min(budget_slots, self.window)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that memory follows from; `layers[i]` belongs to the attention module of `layer_idx` i.

    `short_positions` are those up to which the factors for short texts hold, None where a model has one set for all.
    `is_tied`: embedding and head are one matrix; `is_quantised`: the weights are stored in fewer bits than `dtype`,
    by `quant_method` as config.json calls it.
    """

    family: str
    layers: tuple[LayerShape, ...]
    hidden: int
    query_heads: int
    vocab: int
    intermediate: int
    max_positions: int | None
    positions: Literal["rotary", "learned", "none"]
    rope_type: str | None
    dtype: str
    is_tied: bool = True
    is_quantised: bool = False
    quant_method: str | None = None
    short_positions: int | None = None

    @classmethod
    def from_config(
        cls, config: Mapping[str, object], *, dtype: str | None = None, stored_dtype: str | None = None
    ) -> ModelShape:
        """Read a config.json object, or the text model's part of a composite one.

        `dtype` overrules the one it names; `stored_dtype` (of the weights) stands in where it names none. Raises
        BrokenModel when a value is missing or malformed, UnsupportedModel when the layout is not known.
        """
        if not isinstance(config, Mapping):
            raise BrokenModel(f"config.json holds a {type(config).__name__}; expected an object")
        outer = Fields(config)
        text = outer.nested("text_config") or outer
        refuse_unknown_part(config)
        name = _family_name(outer, text)
        family, text = FAMILIES[name], _completed(text, name)
        dtype = dtype or _dtype(text) or _dtype(outer) or stored_dtype or "bfloat16"
        if dtype not in DTYPE_BYTES:
            raise UnsupportedModel(f"config.json: dtype is '{dtype}'; kvlite runs {', '.join(DTYPE_BYTES)}")
        kinds = _layer_types(text, family, name)
        layers = tuple(
            _layer(kind, _own_fields(text, family, kind, index), family, dtype) for index, kind in enumerate(kinds)
        )
        if not any(layer.kv_heads for layer in layers):
            raise UnsupportedModel(f"'{name}' has no attention layer here, so no KV cache to hold to a budget")
        return cls(
            family=name,
            layers=layers,
            hidden=text.count(*_HIDDEN),
            query_heads=text.count(*_QUERY_HEADS),
            vocab=text.count("vocab_size"),
            intermediate=_intermediate(text),
            max_positions=max_positions(text, family, name),
            positions=positions(text, family),
            rope_type=rope_type(text, family),
            dtype=dtype,
            is_tied={**outer.values, **text.values}.get("tie_word_embeddings")
            is not False,  # left out where it is true
            is_quantised="quantization_config" in config,
            quant_method=_quant_method(config.get("quantization_config")),
            short_positions=short_positions(text, family, name),
        )

    @property
    def has_state(self) -> bool:
        """True if a layer carries constant state; such models run one row at a time."""
        return any(layer.state_bytes for layer in self.layers)

    @property
    def window(self) -> int | None:
        """Number of positions the model was made for; None where it has no positions to run out of."""
        return None if self.positions == "none" else self.max_positions

    @property
    def is_long(self) -> bool:
        """True where positions are turned by the factors for long texts, whatever the length of a text."""
        return self.short_positions is not None and self.max_positions != self.short_positions

    def for_short_texts(self) -> ModelShape:
        """The model with the factors for short texts, within which all positions then are."""
        return self if self.short_positions is None else replace(self, max_positions=self.short_positions)

    @property
    def factors(self) -> str:
        """The rotary factors in use and what asks for the others, empty where a model has one set for all."""
        if self.short_positions is None:
            return ""
        size = f"--kv-budget {self.short_positions}tok"
        if self.is_long:
            return f"turns positions by its factors for long texts; {size} or less takes those for short ones"
        return f"turns positions by its factors for short texts; more than {size} takes those for long ones"

    def kv_bytes_per_token(self, stored: SlotFormat | None = None) -> int:
        """Bytes of K and V of one token in all layers, while inside every window; None means the model's dtype."""
        slot = stored or FORMATS[self.dtype]
        return sum(layer.kv_heads * slot.bytes_per_slot(layer.k_dim, layer.v_dim) for layer in self.layers)

    def full_cache_bytes(self, tokens: int) -> int:
        """Bytes an unbounded cache takes for `tokens` tokens in the model's dtype: K, V and constant state, one row."""
        size = DTYPE_BYTES[self.dtype]
        kv = sum(layer.slots(tokens) * layer.kv_heads * (layer.k_dim + layer.v_dim) for layer in self.layers)
        return kv * size + sum(layer.state_bytes for layer in self.layers)


def _quant_method(settings: object) -> str | None:
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return method if isinstance(method, str) else None


def _family_name(outer: Fields, text: Fields) -> str:
    name = text.text("model_type") or outer.text("model_type")
    if name is None:
        raise BrokenModel("config.json has no model_type; expected the name of a model family")
    name = TEXT_TYPES.get(name, name)
    if f"{name}_text" in FAMILIES or f"{name}_text" in NOT_HELD:
        name = f"{name}_text"
    if name in NOT_HELD:
        raise UnsupportedModel(f"kvlite cannot hold '{name}' inside a budget: {NOT_HELD[name]}")
    if name not in FAMILIES:
        raise UnsupportedModel(
            f"unknown attention layout: model_type '{name}' is none of the {len(FAMILIES)} families that kvlite knows; "
            "choose another model"
        )
    if text.values.get("use_bidirectional_attention") in (True, "all"):
        raise UnsupportedModel(f"this '{name}' attends in both directions; kvlite runs causal models")
    return name


def _completed(text: Fields, name: str) -> Fields:
    """The fields with those that config.json leaves to transformers' class, as gemma-3-4b-it does its heads."""
    held = [any(key in text.values for key in keys) for keys in (_LAYERS, _HIDDEN, _QUERY_HEADS, ("vocab_size",))]
    if all(held) or not all(held[:2]):  # without sizes of its own it is no model's
        return text
    return Fields({**class_defaults(name), **text.values})


def _layer_types(text: Fields, family: Family, name: str) -> tuple[str, ...]:
    listed = family.types(text) if family.types else text.names("layer_types") if family.reads_layer_types else None
    layers = len(listed or ()) if family.types else text.count(*_LAYERS)
    if layers > _MOST_LAYERS:
        raise BrokenModel(f"config.json: num_hidden_layers is {layers}; expected at most {_MOST_LAYERS}")
    if listed is None:
        return tuple(FULL if family.is_full(text, layer) else family.others for layer in range(layers))
    kinds = tuple(_OLD_TYPES.get(kind, kind) for kind in listed)
    if len(kinds) != layers:
        raise BrokenModel(f"config.json: layer_types lists {len(kinds)} layers, num_hidden_layers is {layers}")
    strange = set(kinds) - {FULL, SLIDING} - ({LINEAR, CONV, HYBRID} if family.state else set())
    strange -= {MLP, MOE} if family.types else set()
    if strange:
        raise UnsupportedModel(f"unknown attention layout: '{name}' with layers of type {', '.join(sorted(strange))}")
    return kinds


def _own_fields(text: Fields, family: Family, kind: str, index: int) -> Fields:
    """The fields as layer `index` sees them: `per_layer_config` and Gemma 4's global heads overrule the model's own."""
    listed = text.nested("per_layer_config")
    if listed is not None:
        own = listed.nested(str(index))
        return text if own is None else Fields({**text.values, **own.values})
    if not family.global_dims or kind != FULL:
        return text
    overrides: dict[str, object] = {"head_dim": text.values.get("global_head_dim", 512)}
    if text.flag("attention_k_eq_v", default=False) and text.values.get("num_global_key_value_heads") is not None:
        overrides["num_key_value_heads"] = text.values["num_global_key_value_heads"]
    return Fields({**text.values, **overrides})


def _layer(kind: str, own: Fields, family: Family, dtype: str) -> LayerShape:
    if kind in (MLP, MOE):
        return LayerShape("state", 0, 0, 0)
    state = family.state(own, DTYPE_BYTES[dtype]) if family.state and kind not in (FULL, SLIDING) else 0
    if kind in (LINEAR, CONV):
        return LayerShape("state", 0, 0, 0, None, state)
    slides = kind == SLIDING and (family.window_flag is None or own.flag(family.window_flag, default=False))
    window = own.optional_count("sliding_window", default=family.window) if slides else None
    return LayerShape("full" if window is None else "sliding", *_heads(own, family), window, state)


def _heads(own: Fields, family: Family) -> tuple[int, int, int]:
    """KV heads, elements of a key, elements of a value."""
    hidden, query_heads = own.count(*_HIDDEN), own.count(*_QUERY_HEADS)
    if query_heads > hidden:
        raise BrokenModel(f"config.json: {query_heads} attention heads share a hidden size of {hidden}")
    if family.mla is not None:
        nope, rope, value = family.mla
        k_dim = own.count("qk_nope_head_dim", default=nope) + own.count("qk_rope_head_dim", default=rope)
        return query_heads, k_dim, own.optional_count("v_head_dim", default=value) or hidden // query_heads
    given = own.optional_count("head_dim", default=family.head_dim) if family.reads_head_dim else None
    head_dim = given or hidden // query_heads
    if family.multi_query:
        return 1 if own.flag("multi_query", default=True) else query_heads, head_dim, head_dim
    if not family.grouped:
        return query_heads, head_dim, head_dim
    kv_heads = own.optional_count("num_key_value_heads", default=family.kv_heads) or query_heads
    if query_heads % kv_heads:
        raise BrokenModel(
            f"config.json: num_attention_heads {query_heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    return kv_heads, head_dim, head_dim


def _intermediate(text: Fields) -> int:
    """The widest feed-forward layer; four times hidden where config.json does not say."""
    for name in ("intermediate_size", "n_inner", "ffn_dim"):
        value = text.values.get(name)
        if isinstance(value, list) and value:
            return max(text.whole_numbers(name) or ())
        if value is not None:
            return text.count(name)
    return 4 * text.count(*_HIDDEN)


def _dtype(fields: Fields) -> str | None:
    return (fields.text("dtype") or fields.text("torch_dtype") or "").removeprefix("torch.") or None
