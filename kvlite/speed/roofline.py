"""The roofline of decoding: a token cannot come faster than the bytes it needs can be read.

seconds per token  >=  (weights read once + live slots) / bytes the device copies per second
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kvlite.models.loaded import LoadedModel

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def weights_read_bytes(loaded: LoadedModel) -> int | None:
    """Bytes of weights one decoded token reads: all but an embedding table that the head does not share.

    None for a mixture of experts, which reads some of them.
    """
    text = loaded.model.config.get_text_config()
    if any((getattr(text, name, None) or 0) > 1 for name in _EXPERTS):
        return None
    embedding: Any = loaded.model.get_input_embeddings()
    head: Any = loaded.model.get_output_embeddings()
    table: Tensor = embedding.weight
    is_shared = head.weight.data_ptr() == table.data_ptr()
    return loaded.weight_bytes - (0 if is_shared else table.nbytes)
