"""The canary of coded slots: does what a model says survive its keys and values in 8 or 4 bits?

Some models do not: Qwen2 and Qwen2.5 add biases of huge norm to a few layers' keys, and what tells one key from the
other drowns in the rounding of what all of them share. So the model writes a few tokens with exact slots, is fed the
same into coded ones, and the two distributions of every next token are compared. The text is the model's own, because
on ids at random even a good model is unsure of everything, which hides and invents losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.errors import NumericError, SlotsTooCoarse
from kvlite.memory.format import SlotFormat, slot_format
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import dry_cache, feed, probe_ids

TOKENS = 32
HARMLESS = 0.03
"""Mean nats per token up to which coded slots are taken without being asked for."""
NOTICEABLE = 0.1
DESTROYED = 1.0
"""Mean nats per token from which a loss is worth a warning, and from which the model no longer says what it said."""


@dataclass(frozen=True, slots=True)
class Canary:
    """What coded slots changed: mean divergence in nats per token, and the share of tokens whose first choice stayed.

    The divergence is NaN where the coded slots led to no numbers.
    """

    stored: SlotFormat
    nats: float
    agreement: float

    @property
    def is_dead(self) -> bool:
        """Whether the format destroys what the model says."""
        return not self.nats < DESTROYED

    @property
    def is_harmless(self) -> bool:
        """Whether the format costs so little that a few more tokens are worth more."""
        return self.nats <= HARMLESS

    @property
    def is_ill(self) -> bool:
        """Whether the format changes what the model says."""
        return not self.nats < NOTICEABLE

    @property
    def finding(self) -> str:
        """What changed, in words."""
        changes = f"{self.stored.name} slots {'change' if self.is_ill else 'move'} what the model says"
        return f"{changes} by {self.nats:.2g} nats a token, {self.agreement:.0%} of first choices kept"

    def __str__(self) -> str:
        other = "--kv-dtype int8 or auto" if self.stored.bits < 8 else "--kv-dtype auto"
        return f"{self.finding}; give {other}" if self.is_ill else self.finding


def require_survival(loaded: LoadedModel, stored: SlotFormat) -> Canary:
    """What `stored` slots change. Raises SlotsTooCoarse where they destroy what the model says."""
    canary = try_format(loaded, stored)
    if canary.is_dead:
        raise SlotsTooCoarse(str(canary))
    return canary


@torch.inference_mode()
def try_format(loaded: LoadedModel, stored: SlotFormat) -> Canary:
    """Compare the model's next tokens over `stored` slots with those over slots of its own dtype.

    Takes as long as decoding TOKENS tokens. Raises NumericError where the model computes no numbers by itself.
    """
    count = min(TOKENS, loaded.window or TOKENS)
    ids, expected = _own_text(loaded, count)
    if not expected.isfinite().all():
        raise NumericError("the model computed no numbers; give --dtype float32 or bfloat16")
    actual = feed(loaded, dry_cache(loaded, stored, count), ids)[0].float().log_softmax(-1)
    divergence = (expected.exp() * (expected - actual)).sum(-1)
    agreement = (expected.argmax(-1) == actual.argmax(-1)).float()
    return Canary(stored, float(divergence.mean()), float(agreement.mean()))


def _own_text(loaded: LoadedModel, count: int) -> tuple[Tensor, Tensor]:
    """`count` ids that the model draws from what it says next, [1, count], and its log-probabilities [count, V]."""
    cache = dry_cache(loaded, slot_format("auto", loaded.dtype_name), count)
    ids, said = [probe_ids(loaded, 1)], []
    generator = torch.Generator().manual_seed(0)
    if loaded.state is not None:
        loaded.state.reset()
    for at in range(count):
        pos = torch.tensor([[at]], dtype=torch.int32, device=loaded.device)
        step = cache.begin(slice(0, 1), pos, pos, (1,), None)
        said.append(loaded.forward(ids[-1], cache, step)[0, -1].float().log_softmax(-1))
        shares = said[-1].exp().cpu().nan_to_num(nan=1.0)
        ids.append(torch.multinomial(shares, 1, generator=generator)[None].to(loaded.device))
    if loaded.state is not None:
        loaded.state.reset()
    return torch.cat(ids[:count], 1), torch.stack(said)
