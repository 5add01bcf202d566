"""kvlite beside other engines on random weights in the shapes of real models: one run, one JSON, one table of ratios.

    python benchmarks/compare.py --shape tiny --device cpu --minutes 2
    python benchmarks/compare.py --shape llama-3.1-8b --out benchmarks/results/llama-3.1-8b

Engines take turns, round after round, and medians are reported; the device's copy bandwidth is measured in the same
run. An engine that cannot run here is named with the reason. `benchmarks/gpu.sh` runs it on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kvlite.cache.policy import DEFAULT_POLICY
from kvlite.speed.roofline import measure_ceilings
from peers.compiled import Compiled
from peers.ours import Kvlite
from peers.peer import Case, NotAvailable, Peer, Took
from peers.pressed import Kvpress
from peers.record import Record
from peers.shapes import SHAPES, behind_the_gate, random_model, sharing_weights
from peers.theirs import Generate, in_nf4, quantized, static
from peers.turns import Run, in_turns, prompt_of

PEERS = ("kvlite", "kvlite-triton", "kvlite-captured", "kvlite-triton-captured", "kvlite-int8", "kvlite-int4",
         "dynamic", "static", "quantized", "compiled", "kvlite-nf4", "nf4", "kvpress")  # fmt: skip
SMALL = {"decode": ["60:32", "40:128"], "prefill": ["64:32", "128:32"]}
REAL = {"decode": ["1024:2048", "8192:2048", "32768:2048"], "prefill": ["2048:2048", "32768:2048"]}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--peers", default=",".join(PEERS), help="some of " + ",".join(PEERS))
    for name, what in (("decode", "answers"), ("prefill", "prompts")):
        help = f"{what} to measure, may be given several times; none leaves them out"
        parser.add_argument(f"--{name}", action="append", metavar="CONTEXT:SLOTS", help=help)
    parser.add_argument("--policy", default=DEFAULT_POLICY)
    parser.add_argument("--tokens", type=int, default=64, help="decode steps of a timing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after this long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kvpress-python", type=Path, metavar="PATH", help="an interpreter that has kvpress")
    parser.add_argument("--out", type=Path, metavar="PREFIX", help="write PREFIX.json and PREFIX.md")
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    if strange := set(options.peers) - set(PEERS):
        parser.error(f"--peers: {', '.join(sorted(strange))} is none of {', '.join(PEERS)}")
    cases = SMALL if options.shape in ("tiny", "demo") else REAL
    for name in ("decode", "prefill"):
        given = getattr(options, name) or cases[name]
        setattr(options, name, [] if given == ["none"] else [Case(*map(int, case.split(":"))) for case in given])
    return options


def open_peers(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype, record: Record
) -> dict[str, Peer]:
    """Open the engines asked for that can run here; why the others cannot goes into the record."""
    theirs = random_model(options.shape, device, dtype)
    ours = behind_the_gate(sharing_weights(theirs), dtype)

    def like(name: str, **differently: Any) -> Kvlite:
        return Kvlite(ours, options.policy, name=name, **differently)

    makers: Mapping[str, Callable[[], Peer]] = {
        "kvlite": lambda: like("kvlite"),
        "kvlite-triton": lambda: like("kvlite-triton", kernels="triton"),
        "kvlite-captured": lambda: like("kvlite-captured", captures=True),
        "kvlite-triton-captured": lambda: like("kvlite-triton-captured", kernels="triton", captures=True),
        "kvlite-int8": lambda: like("kvlite-int8", kv_dtype="int8"),
        "kvlite-int4": lambda: like("kvlite-int4", kv_dtype="int4"),
        "dynamic": lambda: Generate(theirs, "dynamic", "dynamic"),
        "static": lambda: static(theirs),
        "quantized": lambda: quantized(theirs),
        "compiled": lambda: Compiled(theirs),
        "kvlite-nf4": lambda: Kvlite(behind_the_gate(in_nf4(theirs), dtype, "nf4"), options.policy, name="kvlite-nf4"),
        "nf4": lambda: Generate(in_nf4(theirs), "nf4", "dynamic"),
        "kvpress": lambda: Kvpress(options.kvpress_python, options.shape, str(device), record.dtype),
    }
    found: dict[str, Peer] = {}
    for name in dict.fromkeys(("kvlite", *options.peers)):  # every ratio is to kvlite
        try:
            found[name] = makers[name]()
        except NotAvailable as error:
            record.not_available[name] = str(error)
    return found


def decode(peers: Mapping[str, Peer], case: Case, vocab: int, record: Record, run: Run, options: Any) -> None:
    """Measure decoding: tokens per second after the first, and the share of the device's copy bandwidth."""
    prompt = prompt_of(case.context, vocab)
    found = in_turns(peers, lambda peer: peer.answer(prompt, options.tokens, case), rounds=options.rounds, run=run,
                     what=f"decode {case.context}:{case.slots}")  # fmt: skip
    reference = found.get("dynamic")
    for name, timings in found.items():
        read, step_s = peers[name].read_bytes(case), timings.median(lambda took: took.step_s)
        record.decode.append({
            "peer": name, "context": case.context, "slots": case.slots, "tokens_s": 1 / step_s, "step_s": step_s,
            "step_between_s": timings.spread(lambda took: took.step_s), "rounds": len(timings.rounds),
            "read_bytes": read, "share_of_copy": None if read is None else read / step_s / record.ceilings.copy_bytes_s,
            "peak_bytes": timings.peak_bytes,
            "same_as_dynamic": None if reference is None else common(timings.rounds[0], reference.rounds[0]),
        })  # fmt: skip


def prefill(peers: Mapping[str, Peer], case: Case, vocab: int, record: Record, run: Run, options: Any) -> None:
    """Measure a prompt to its first token: tokens per second and peak bytes."""
    prompt = prompt_of(case.context, vocab)
    found = in_turns(peers, lambda peer: peer.answer(prompt, 1, case), rounds=min(3, options.rounds), run=run,
                     what=f"prefill {case.context}:{case.slots}")  # fmt: skip
    for name, timings in found.items():
        first_s = timings.median(lambda took: took.first_s)
        record.prefill.append({
            "peer": name, "context": case.context, "slots": case.slots, "tokens_s": case.context / first_s,
            "first_token_s": first_s, "first_between_s": timings.spread(lambda took: took.first_s),
            "rounds": len(timings.rounds), "processor_s": timings.median(lambda took: took.processor_s),
            "kv_bytes": timings.rounds[0].kv_bytes, "peak_bytes": timings.peak_bytes,
        })  # fmt: skip


def common(took: Took, reference: Took) -> int:
    """Count the tokens of an answer that are the reference's before the first that is not."""
    pairs = enumerate(zip(took.ids, reference.ids, strict=True))
    return next((index for index, (ours, theirs) in pairs if ours != theirs), took.tokens)


def main() -> None:
    """Measure, print the page, and write both files where they are asked for."""
    options = arguments()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    record = Record(options.shape, str(dtype).removeprefix("torch."), device, measure_ceilings(device, dtype))
    run = Run.of(options.minutes)
    peers = open_peers(options, device, dtype, record)
    ours = peers["kvlite"]
    assert isinstance(ours, Kvlite)
    for measure, cases in ((decode, options.decode), (prefill, options.prefill)):
        for case in cases:
            measure(peers, case, ours.loaded.shape.vocab, record, run, options)
            record.update(peers, run, options.out)  # as far as it got, should the next case end the process
    print(record.to_markdown())
    for peer in peers.values():
        getattr(peer, "close", lambda: None)()


if __name__ == "__main__":
    main()
