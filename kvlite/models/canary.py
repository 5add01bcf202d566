"""The canary of coded slots: does what a model says survive its keys and values in 8 or 4 bits?

Some models do not: Qwen2 and Qwen2.5 add biases of huge norm to a few layers' keys, and what tells one key from the
other drowns in the rounding of what all of them share. A few tokens are fed twice, into slots of the model's dtype and
into coded ones, and the two distributions of every next token are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvlite.memory.format import SlotFormat, slot_format
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import dry_cache, feed, probe_ids

PROBE_TOKENS = 64
NOTICEABLE = 0.1
DESTROYED = 1.0
"""Mean nats per token from which a loss is warned of, and from which the format is refused."""


@dataclass(frozen=True, slots=True)
class Canary:
    """What coded slots changed: mean divergence in nats per token, and the share of tokens whose first choice stayed.

    The divergence is NaN where the model computed no numbers.
    """

    nats: float
    agreement: float

    @property
    def is_dead(self) -> bool:
        """Whether the format destroys what the model says."""
        return not self.nats < DESTROYED

    @property
    def is_ill(self) -> bool:
        """Whether the loss is more than that of rounding alone."""
        return not self.nats < NOTICEABLE

    def __str__(self) -> str:
        return f"{self.nats:.2g} nats a token, {self.agreement:.0%} of the first choices kept"


@torch.inference_mode()
def try_format(loaded: LoadedModel, stored: SlotFormat) -> Canary:
    """Feed the probe into slots of the model's dtype and into `stored` ones, and compare what the model says next."""
    window = loaded.window
    ids = probe_ids(loaded, PROBE_TOKENS if window is None else min(PROBE_TOKENS, window))
    exact, coded = (
        feed(loaded, dry_cache(loaded, held, ids.shape[1]), ids)[0].float()
        for held in (slot_format("auto", loaded.dtype_name), stored)
    )
    expected = exact.log_softmax(-1)
    surprise = expected - coded.log_softmax(-1)
    divergence = (expected.exp() * surprise.masked_fill(expected == -torch.inf, 0.0)).sum(-1)
    agreement = (exact.argmax(-1) == coded.argmax(-1)).float()
    return Canary(float(divergence.mean()), float(agreement.mean()))
