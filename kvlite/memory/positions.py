"""The positions of a model, and the scaling of its rotary angles, read from its config.json alone. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from kvlite.memory.families import Family, class_defaults
from kvlite.memory.fields import Fields

_EXTENDED = ("gemma3_text",)  # their max_position_embeddings is that of the scaled positions


def max_positions(text: Fields, family: Family, name: str) -> int | None:
    """The model's positions, with the factors for long texts where it has such.

    Model cards say to add `yarn` or `linear` and leave max_position_embeddings as it was: it counts times the factor.
    """
    rope = rope_type(text, family)
    given = family.max_positions or Fields(class_defaults(name)).optional_count("max_position_embeddings")
    for key in ("max_position_embeddings", "n_positions"):
        if key in text.values:
            given = text.optional_count(key)
            break
    if rope == "longrope":
        return max(given or 0, _original(text) or 0) or None
    if rope not in ("yarn", "linear") or given is None or name in _EXTENDED:
        return given
    original = _scaling(text).optional_count("original_max_position_embeddings") or given
    factor = _scaling(text).values.get("factor")
    return max(given, int(original * factor)) if isinstance(factor, int | float) and 1 <= factor <= 1e6 else given


def short_positions(text: Fields, family: Family, name: str) -> int | None:
    """The positions up to which `longrope` has factors of its own; None where a model has but one set."""
    if rope_type(text, family) != "longrope":
        return None
    original, most = _original(text), max_positions(text, family, name)
    return original if original is not None and most is not None and original < most else None


def positions(text: Fields, family: Family) -> Literal["rotary", "learned", "none"]:
    """The way a model tells tokens' places apart."""
    if family.rope_flag and text.text("position_embedding_type") != "rope":
        return "none"
    if family.names_rope and (text.nested("rope_parameters") or Fields({})).values.get("rope_theta") is None:
        return "none"
    return family.positions


def rope_type(text: Fields, family: Family) -> str | None:
    """The scaling of rotary angles; of several (one per layer type) the one that is not the plain default."""
    if positions(text, family) != "rotary":
        return None
    scaling = _scaling(text)
    parts = [Fields(part) for part in scaling.values.values() if isinstance(part, Mapping)] or [scaling]
    types = {part.text("rope_type") or part.text("type") or "default" for part in parts}
    if text.text("model_type") == "phi3" and types & {"su", "yarn"}:  # its old names for one and the same
        return "longrope"
    return "dynamic" if "dynamic" in types else next(iter(sorted(types - {"default"})), "default")


def _scaling(text: Fields) -> Fields:
    return text.nested("rope_scaling") or text.nested("rope_parameters") or Fields({})


def _original(text: Fields) -> int | None:
    """The positions before scaling; Phi-3's class has 4,096."""
    for fields in (_scaling(text), text):
        if "original_max_position_embeddings" in fields.values:
            return fields.optional_count("original_max_position_embeddings", default=None)
    return 4096 if text.text("model_type") == "phi3" else None
