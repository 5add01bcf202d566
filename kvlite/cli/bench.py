"""`kvlite bench`: how fast a model runs here, held against what the device can do."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated

from kvlite.cli.invocation import Invocation
from kvlite.cli.options import model_argument
from kvlite.cli.signature import without
from kvlite.errors import UsageError
from kvlite.options import ModelOptions, option

_COUNT = re.compile(r"(\d{1,12})([kM]?)", re.ASCII)
_TIMES = {"": 1, "k": 1_000, "M": 1_000_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """Which model to measure, and on how many tokens."""

    model: str | None = model_argument()
    prompt: str = option("128,1k", metavar="N,N", help="Lengths of prompts, fed to the first token.")
    context: str = option("128,1k,8k", metavar="N,N", help="Decode after this many tokens, such as 500,8k.")
    drift: str = option(
        "1k,10k,100k,1M",
        metavar="N,N",
        help="Decode with all slots full after this many tokens: the state is put there, not fed.",
    )
    steps: int = option(64, metavar="N", min=1, help="Decode steps of each timing.")
    rounds: int = option(5, metavar="N", min=1, help="Times everything is repeated.")
    seed: int = option(0, metavar="N", min=0, help="Same seed, same random tokens.")


def bench(
    given: BenchOptions,
    options: Annotated[ModelOptions, without("think", "kv_per_seq", "pin_system")],
    call: Invocation,
) -> None:
    """Measure start-up, prompts and decoding on random tokens, and the share of this device's bandwidth they use."""
    from kvlite.cli.benching import Asked, bench_model

    asked = Asked(
        prompts=_counts("--prompt", given.prompt),
        contexts=_counts("--context", given.context),
        drift=_counts("--drift", given.drift),
        steps=given.steps,
        rounds=given.rounds,
        seed=given.seed,
    )
    bench_model(asked, replace(options, model=call.chosen_model(given.model)), call.console)


def _counts(flag: str, value: str) -> tuple[int, ...]:
    """The counts of a list with commas, ascending; none in an empty list. Raises UsageError on what is no count."""
    found = []
    for item in value.split(",") if value.strip() else ():
        match = _COUNT.fullmatch(item.strip())
        count = int(match[1]) * _TIMES[match[2]] if match else 0
        if not 1 <= count < 2**31:
            raise UsageError(f"{flag} {value}: {item.strip()!r} is no count of tokens; give for example 500, 8k or 1M")
        found.append(count)
    return tuple(sorted(set(found)))
