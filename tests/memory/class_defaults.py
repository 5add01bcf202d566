"""Writes kvlite/memory/class_defaults.json, the values that config.json may leave to transformers' classes.

Run `python -m tests.memory.class_defaults`; a test holds the file and the classes together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from kvlite.memory.families import FAMILIES

FILE = Path(__file__).parents[2] / "kvlite" / "memory" / "class_defaults.json"
FIELDS = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "intermediate_size",
    "max_position_embeddings", "sliding_window",
)  # fmt: skip


def class_defaults() -> dict[str, dict[str, Any]]:
    """The default of each field that memory follows from, by family, where it is a number."""
    found = {}
    for name in sorted(FAMILIES):
        try:
            config = AutoConfig.for_model(name).to_dict()
        except ValueError:  # known to kvlite by another name
            continue
        found[name] = {field: config[field] for field in FIELDS if isinstance(config.get(field), int)}
    return found


if __name__ == "__main__":
    lines = (f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in class_defaults().items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
