"""kvlite beside other engines on random weights in the shapes of real models: one run, one JSON, one table of ratios.

    python benchmarks/compare.py --shape tiny --device cpu --minutes 2
    python benchmarks/compare.py --shape llama-3.1-8b --out benchmarks/results/llama-3.1-8b

Peers take turns, round after round, and medians are reported; what the device copies and multiplies is measured in the
same run. An engine that cannot run here is named with the reason. `benchmarks/gpu.sh` runs the whole list on a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kvlite.speed.ceilings import measure_ceilings
from parts.alone import drift, kernels
from parts.answers import batch, decode, prefill
from parts.record import PARTS, Record
from parts.rounds import Run, case_of
from peers.compiled import Compiled
from peers.ours import Kvlite
from peers.peer import NotAvailable, Peer
from peers.pressed import Kvpress
from peers.shapes import SHAPES, behind_the_gate, random_model, sharing_weights
from peers.theirs import Generate, in_nf4, quantized, static

PEERS = ("kvlite", "kvlite-triton", "kvlite-captured", "kvlite-triton-captured", "kvlite-int4", "dynamic", "static",
         "quantized", "compiled", "kvlite-nf4", "nf4", "kvpress")  # fmt: skip
SMALL = {
    "decode": ["60:32", "40:128"], "prefill": ["64:32", "128:32"], "batch": ["48:16"], "drift": [100, 1_000, 1_000_000],
}  # fmt: skip
REAL = {
    "decode": ["1024:2048", "8192:2048", "32768:2048"], "prefill": ["2048:2048", "32768:2048", "131000:2048"],
    "batch": ["4096:512"], "drift": [1_000, 10_000, 100_000, 1_000_000],
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ",".join(PARTS))
    parser.add_argument("--peers", default=",".join(PEERS), help="some of " + ",".join(PEERS))
    parser.add_argument("--decode", action="append", metavar="CONTEXT:SLOTS", help="may be given several times")
    parser.add_argument("--prefill", action="append", metavar="CONTEXT:SLOTS", help="may be given several times")
    parser.add_argument("--batch", action="append", metavar="CONTEXT:SLOTS", help="may be given several times")
    parser.add_argument("--batch-rows", type=int, default=4, help="conversations that the full cache holds")
    parser.add_argument("--batch-new", type=int, help="tokens of each answer of a batch; an eighth of the prompt")
    parser.add_argument("--policy", default="heavy-hitter")
    parser.add_argument("--tokens", type=int, default=64, help="decode steps of a timing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after this long")
    parser.add_argument("--processor-time", action="store_true", help="drift by processor time, not by the clock")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kvpress-python", type=Path, metavar="PATH", help="an interpreter that has kvpress")
    parser.add_argument("--out", type=Path, metavar="PREFIX", help="write PREFIX.json and PREFIX.md")
    options = parser.parse_args()
    for name, known in (("parts", PARTS), ("peers", PEERS)):
        setattr(options, name, getattr(options, name).split(","))
        if strange := set(getattr(options, name)) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(strange))} is none of {', '.join(known)}")
    cases = SMALL if options.shape in ("tiny", "demo") else REAL
    for name in ("decode", "prefill", "batch"):
        setattr(options, name, [case_of(text) for text in getattr(options, name) or cases[name]])
    options.drift = cases["drift"]
    return options


def open_peers(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype, record: Record
) -> dict[str, Peer]:
    """The peers asked for that can run here; why the others cannot goes into the record."""
    theirs = random_model(options.shape, device, dtype)
    ours = behind_the_gate(sharing_weights(theirs), dtype)

    def quantised() -> Kvlite:
        return Kvlite(behind_the_gate(in_nf4(theirs), dtype, "nf4"), options.shape, options.policy, name="kvlite-nf4")

    def like(name: str, **differently: Any) -> Kvlite:
        return Kvlite(ours, options.shape, options.policy, name=name, **differently)

    makers: Mapping[str, Callable[[], Peer]] = {
        "kvlite": lambda: like("kvlite"),
        "kvlite-triton": lambda: like("kvlite-triton", kernels="triton"),
        "kvlite-captured": lambda: like("kvlite-captured", captures=True),
        "kvlite-triton-captured": lambda: like("kvlite-triton-captured", kernels="triton", captures=True),
        "kvlite-int4": lambda: like("kvlite-int4", kv_dtype="int4"),
        "dynamic": lambda: Generate(theirs, "dynamic", "dynamic"),
        "static": lambda: static(theirs),
        "quantized": lambda: quantized(theirs),
        "compiled": lambda: Compiled(theirs),
        "kvlite-nf4": quantised,
        "nf4": lambda: Generate(in_nf4(theirs), "nf4", "dynamic"),
        "kvpress": lambda: Kvpress(options.kvpress_python, options.shape, str(device), record.dtype),
    }
    found: dict[str, Peer] = {}
    for name in options.peers:
        try:
            found[name] = makers[name]()
        except NotAvailable as error:
            record.not_available[name] = str(error)
    if "kvlite" not in found:
        found = {"kvlite": makers["kvlite"](), **found}  # every ratio is to it
    return found


def run(options: argparse.Namespace) -> Record:
    """Measure the parts asked for."""
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    record = Record(options.shape, str(dtype).removeprefix("torch."), device, measure_ceilings(device, dtype))
    begun = Run.of(options.minutes)
    peers = open_peers(options, device, dtype, record)
    ours = peers["kvlite"]
    assert isinstance(ours, Kvlite)
    vocab = ours.loaded.shape.vocab
    own = [peer for peer in peers.values() if isinstance(peer, Kvlite)]
    slots = options.decode[0].slots

    def batches() -> list[dict[str, object]]:
        other = next((peers[name] for name in ("dynamic", "static", "compiled") if name in peers), ours)
        return [
            row
            for case in options.batch
            for row in batch(ours, other, case, options.batch_new or max(1, case.context // 8), options.batch_rows,
                             rounds=min(3, options.rounds), run=begun)
        ]  # fmt: skip

    measures = {
        "decode": lambda: decode(peers, options.decode, vocab=vocab, tokens=options.tokens, rounds=options.rounds,
                                 ceilings=record.ceilings, run=begun),
        "prefill": lambda: prefill(peers, options.prefill, vocab=vocab, rounds=min(3, options.rounds), run=begun),
        "batch": batches,
        "drift": lambda: [row for peer in own for row in drift(peer, slots, options.drift, steps=options.tokens,
                                                               rounds=options.rounds, run=begun,
                                                               by_processor=options.processor_time)],
        "kernels": lambda: kernels(ours, slots, record.ceilings, begun),
    }  # fmt: skip
    for part in options.parts:
        record.parts[part] = measures[part]()
        for peer in peers.values():
            record.notes[peer.name] = peer.note
    record.failed, record.left_out = begun.failed, begun.left_out
    for peer in peers.values():
        getattr(peer, "close", lambda: None)()
    return record


def main() -> None:
    """Measure, print the page, and write both files where they are asked for."""
    options = arguments()
    torch.set_num_threads(options.threads)
    record = run(options)
    print(record.to_markdown())
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_name(options.out.name + ".json").write_text(json.dumps(record.to_json(), indent=2) + "\n")
        options.out.with_name(options.out.name + ".md").write_text(record.to_markdown())


if __name__ == "__main__":
    main()
