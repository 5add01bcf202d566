"""The configs and weights of all aliases as they were at one date, so that plans for them need no network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from kvlite.memory.prediction import Weights


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Facts of config.json about a model, in short, the bytes of its weights, and the day this was so."""

    config: Mapping[str, Any]
    weights: Weights
    date: str


def known_model(alias: str) -> KnownModel | None:
    """The model of an alias as the package knows it; None of what is no alias."""
    table = _table()
    found = table["models"].get(alias)
    if found is None:
        return None
    sizes = found["bytes"]
    return KnownModel(found["config"], Weights(sum(sizes.values()), found["parameters"], sizes), table["date"])


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads((files("kvlite.catalog") / "shapes.json").read_text(encoding="utf-8"))
    return table
