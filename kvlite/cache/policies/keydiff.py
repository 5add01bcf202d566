"""KeyDiff (https://arxiv.org/abs/2504.15364): keys that are unlike the others stay. No attention is looked at.

    anchor  =  mean over the held keys of k_j / |k_j|          rank_j  =  -cos(k_j, anchor)

Keys are those of the slots, rotated. The paper evicts block by block in prefill, as every policy does here. Departure:
the newest token always stays. Nothing is kept per slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlite.cache.policy import Candidates, Policy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class KeyDiff(Policy):
    """Keep the tokens whose keys differ most from the mean of all keys."""

    name: ClassVar[str] = "keydiff"
    summary: ClassVar[str] = "KeyDiff: the tokens whose keys differ most from the average key, attention-free"

    sinks: int = 0

    def recent(self, slots: int) -> int:
        return 1

    def score(self, candidates: Candidates) -> Tensor:
        keys = candidates.keys.float()
        unit = keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        unit = unit.masked_fill((candidates.pos < 0)[..., None], 0.0)
        total = unit.sum(-2)
        anchor = total / total.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        cosine: Tensor = (unit @ anchor[..., None])[..., 0]
        return -cosine
