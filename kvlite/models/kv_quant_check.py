"""Checks after loading that a model tolerates its keys and values in 8, 6 or 4 bits.

Qwen2 and Qwen2.5, for one, add biases of huge norm to a few layers' keys, and the difference between two keys drowns in
the rounding of what all of them share. So the model generates a few tokens with exact slots, is fed the same tokens
with quantised ones, and the two distributions of every next token are compared. The text is the model's own: on random
ids even a good model is unsure of everything, which hides losses and invents others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.errors import NumericError, SlotsTooCoarse
from kvlite.memory.format import SlotFormat
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import dry_cache, feed, probe_ids

TOKENS = 32
HARMLESS = 0.06
HARMLESS_KEYS_OF_4 = 0.02
"""Mean nats per token up to which quantised slots are taken without being asked for, and those of keys in 4 bits.

Keys in 6 bits take a sixth or so more bytes. SmolLM2-135M loses 0.044 in int4 and 0.013 in k6v4, and at a fifth of the
bytes answers 87 % of what the whole cache answers in int4, 94 % in k6v4 (docs/fidelity.md).
"""
NOTICEABLE = 0.1
DESTROYED = 1.0
"""Mean nats per token from which a loss is worth a warning, and from which the model's answers are lost."""


@dataclass(frozen=True, slots=True)
class QuantEffect:
    """Change by quantised slots: mean divergence in nats per token, and the share of tokens whose first choice stayed.

    The divergence is NaN where quantised slots led to no numbers.
    """

    stored: SlotFormat
    nats: float
    agreement: float

    @property
    def is_destructive(self) -> bool:
        """The format destroys the model's answers."""
        return not self.nats < DESTROYED

    @property
    def is_harmless(self) -> bool:
        """The format costs so little that a few more tokens are worth more."""
        return self.nats <= (HARMLESS_KEYS_OF_4 if self.stored.k_bits == 4 else HARMLESS)

    @property
    def is_noticeable(self) -> bool:
        """The format changes the model's answers enough for a warning."""
        return not self.nats < NOTICEABLE

    def require_tolerable(self, *, is_named: bool) -> None:
        """Raise SlotsTooCoarse where slots that the user named destroy the model's answers."""
        if is_named and self.is_destructive:
            raise SlotsTooCoarse(str(self))

    @property
    def finding(self) -> str:
        """The change in words."""
        changes = f"{self.stored.name} slots {'change' if self.is_noticeable else 'move'} what the model says"
        return f"{changes} by {self.nats:.2g} nats a token, {self.agreement:.0%} of first choices kept"

    def __str__(self) -> str:
        other = "--kv-dtype int8 or auto" if self.stored.v_bits < 8 else "--kv-dtype auto"
        return f"{self.finding}; give {other}" if self.is_noticeable else self.finding


@torch.inference_mode()
def try_format(loaded: LoadedModel, stored: SlotFormat, *, is_named: bool = False) -> QuantEffect:
    """Compare the model's next tokens over `stored` slots with those over slots of its own dtype.

    Takes as long as decoding TOKENS tokens. Raises NumericError where the model computes no numbers by itself, and
    SlotsTooCoarse where slots that the user named destroy its answers.
    """
    count = min(TOKENS, loaded.window or TOKENS)
    ids, expected = _own_text(loaded, count)
    if not expected.isfinite().all():
        raise NumericError("the model computed no numbers; give --dtype float32 or bfloat16")
    actual = feed(loaded, dry_cache(loaded, count, stored), ids)[0].float().log_softmax(-1)
    divergence = (expected.exp() * (expected - actual)).sum(-1)
    agreement = (expected.argmax(-1) == actual.argmax(-1)).float()
    effect = QuantEffect(stored, float(divergence.mean()), float(agreement.mean()))
    effect.require_tolerable(is_named=is_named)
    return effect


def _own_text(loaded: LoadedModel, count: int) -> tuple[Tensor, Tensor]:
    """`count` ids sampled from the model, [1, count], and its log-probabilities [count, V]."""
    cache = dry_cache(loaded, count)
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
