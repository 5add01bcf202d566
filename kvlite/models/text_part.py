"""The text model inside a checkpoint that also sees or hears: its config, and the names of its weights there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from kvlite.catalog.config import read_config
from kvlite.catalog.weights import tensor_names, text_names
from kvlite.memory.families import is_composite


def text_part_arguments(folder: Path) -> dict[str, Any]:
    """Arguments with which transformers loads the text part of the model in `folder`; none where that is the whole.

    Raises BrokenModel where the weights have no such part.
    """
    if not is_composite(read_config(folder)):
        return {}
    names = tensor_names(folder)
    body, head = text_names(names)
    whole = AutoConfig.from_pretrained(folder, local_files_only=True)
    config = whole.get_text_config()
    if not any(name.endswith("lm_head.weight") for name in names):
        config.tie_word_embeddings = True  # as the whole says, which its parts do not repeat
    if getattr(whole, "quantization_config", None) is not None:
        config.quantization_config = whole.quantization_config
    renamed = {f"^{re.escape(body)}": "model.", f"^{re.escape(head)}lm_head": "lm_head"}
    return {"config": config, "key_mapping": renamed}
