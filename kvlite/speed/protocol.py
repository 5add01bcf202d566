"""The protocol of a measurement of speed. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from kvlite.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Prompts of these lengths, decoding after these many tokens, and with all slots full.

    Each timing takes `steps` decode steps and is repeated in `rounds` rounds. Raises UsageError on counts below 1.
    """

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    drift: tuple[int, ...]
    steps: int = 64
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, counts in (("prompt", self.prompts), ("context", self.contexts), ("drift", self.drift)):
            if any(count < 1 for count in counts):
                raise UsageError(f"--{name} has a count below 1; give tokens, such as 1k")
