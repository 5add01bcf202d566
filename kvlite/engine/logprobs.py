"""Log probabilities of drawn tokens by the model itself: nothing that shapes the draw changes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvlite.engine.request import Logprobs


def logprobs(logits: Tensor, ids: Sequence[int], counts: Sequence[int | None]) -> list[Logprobs | None]:
    """Read the log probabilities of `ids` out of logits [n, V], and those of the `counts` likeliest beside each.

    None for a row whose count is None; where all are, nothing is computed. Waits for the device once.
    """
    asked = {place: count for place, count in enumerate(counts) if count is not None}
    if not asked:
        return [None] * len(counts)
    rows = logits[[*asked]].float().log_softmax(-1)
    chosen = torch.tensor([max(0, ids[place]) for place in asked], device=logits.device)[:, None]
    highest, places = rows.topk(min(max(asked.values()), rows.shape[-1]))
    values = torch.cat([rows.gather(-1, chosen), highest], -1).tolist()
    read: list[Logprobs | None] = [None] * len(counts)
    for (place, count), (own, *others), tokens in zip(asked.items(), values, places.tolist(), strict=True):
        read[place] = Logprobs(own, tuple(zip(tokens, others, strict=True))[:count])
    return read
