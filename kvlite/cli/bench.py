"""`kvlite bench`: how fast a model runs here, held against what the device can do."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from kvlite.cli import options as opt
from kvlite.errors import UsageError

_COUNT = re.compile(r"(\d{1,12})([kM]?)", re.ASCII)
_TIMES = {"": 1, "k": 1_000, "M": 1_000_000}


def bench(
    model: opt.ModelArg = None,
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="N,N", help="Lengths of prompts, fed to the first token.")
    ] = "128,1k",
    context: Annotated[
        str, typer.Option("--context", metavar="N,N", help="Decode after this many tokens, such as 500,8k.")
    ] = "128,1k,8k",
    drift: Annotated[
        str,
        typer.Option("--drift", metavar="N,N",
                     help="Decode with all slots full after this many tokens: the state is put there, not fed."),
    ] = "1k,10k,100k,1M",
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Decode steps of each timing.")] = 64,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Times everything is repeated.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Same seed, same random tokens.")] = 0,
    kv_budget: opt.KvBudget = None,
    kv_policy: opt.KvPolicy = None,
    kv_dtype: opt.KvDtype = None,
    on_full: opt.OnFull = None,
    prefill_chunk: opt.PrefillChunk = None,
    quant: opt.Quant = None,
    four_bit: opt.FourBit = False,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
    trust_remote_code: opt.TrustRemoteCode = False,
    allow_pickle: opt.AllowPickle = False,
    fuse: opt.Fuse = True,
    kernels: opt.Kernels = "auto",
    capture: opt.Capture = None,
    offline: opt.Offline = False,
) -> None:  # fmt: skip
    """Measure start-up, prompts and decoding on random tokens, and the share of this device's bandwidth they use."""
    from kvlite.cli.benching import Asked, bench_model

    asked = Asked(
        prompts=_counts("--prompt", prompt),
        contexts=_counts("--context", context),
        drift=_counts("--drift", drift),
        steps=steps,
        rounds=rounds,
        seed=seed,
    )
    options = opt.model_options(
        model=model,
        kv_budget=kv_budget,
        kv_policy=kv_policy,
        kv_dtype=kv_dtype,
        on_full=on_full,
        prefill_chunk=prefill_chunk,
        quant=quant,
        four_bit=four_bit,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        fuse=fuse,
        kernels=kernels,
        capture=capture,
        offline=offline,
    )
    bench_model(asked, options, opt.console())


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
