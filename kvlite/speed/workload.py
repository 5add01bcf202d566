"""The lengths to measure. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Prompts of these lengths, decoding after these many tokens, and decoding with all slots full.

    Each timing takes `steps` decode steps and is repeated in `rounds` rounds; all counts are at least 1.
    """

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    drift: tuple[int, ...]
    steps: int = 64
    rounds: int = 5
    seed: int = 0
