"""Text under weights rounded in several ways: divergence from the weights as they are, in nats a token.

    python benchmarks/rounding.py MODEL --text FILE --out benchmarks/results/rounding-cpu.json

MODEL is a folder, a GGUF file or a name. All linear maps but the output head are rounded and then multiplied in float32
like the weights as they are, so that only rounding counts. Without --text it reads this repository's documentation. A
model whose file holds blocks of 4 bits comes out of the same kind of blocks as it went in: give another one.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import Tensor, nn

from kvlite import LLM
from kvlite_kernels.grid import GROUP, round_to_grid
from kvlite_kernels.packed import Packed8

DOCS = Path(__file__).parents[1] / "docs"
PIECE = 400
SKIPPED = 8
"""The first tokens of a piece do not count: hardly anything is known of what follows them."""


def eight_bits(weight: Tensor) -> Tensor:
    """The weights of `--8bit` on a CPU: a scale for each channel out."""
    held = Packed8.of(weight)
    return held.codes.float() * held.scale.float()[:, None]


def four_bits(weight: Tensor) -> Tensor:
    """The weights of `--4bit` on a CPU: scale and offset of 32 neighbours, fitted twice."""
    codes, grid = round_to_grid(weight)
    scale, offset = grid.float().unsqueeze(2).unbind(-1)
    found: Tensor = torch.addcmul(offset, codes.float().unflatten(1, (-1, GROUP)) - 8, scale).flatten(1)
    return found


def q4_1(weight: Tensor) -> Tensor:
    """The weights of llama.cpp's Q4_1: the ends of 32 neighbours in float16."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    codes = ((groups - low) / step.clamp(min=1e-30) + 0.5).floor().clamp(0, 15)
    found: Tensor = (codes * step.half().float() + low.half().float()).flatten(1)
    return found


def nf4(weight: Tensor) -> Tensor:
    """The weights of bitsandbytes' NF4: 64 neighbours, whose scales are quantised as well."""
    codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    found: Tensor = dequantize_4bit(codes, state)
    return found


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "kvlite, 8 bits": eight_bits,
    "kvlite, 4 bits": four_bits,
    "llama.cpp, Q4_1": q4_1,
    "bitsandbytes, NF4": nf4,
}


@torch.inference_mode()
def scores(model: nn.Module, pieces: list[Tensor]) -> Iterator[Tensor]:
    """Log probabilities [T, V] of what follows each token of each piece."""
    for piece in pieces:
        yield model(input_ids=piece, use_cache=False).logits[0, SKIPPED:].float().log_softmax(-1)


def main() -> None:
    """Measure, print a table, and write the file that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=1200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = options.text or sorted(DOCS.glob("*.md"))[0]
    with LLM(options.model, dtype="float32", fuse=False, kv_budget="2000tok") as llm:
        loaded = llm.model.loaded
    model, tokenizer = loaded.model, loaded.tokenizer
    model.set_attn_implementation("eager")
    ids = tokenizer.encode(text.read_text("utf-8"), add_special_tokens=False)[: options.tokens]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    pieces = [torch.tensor([start + ids[at : at + PIECE]]) for at in range(0, len(ids), PIECE)]
    head = model.get_output_embeddings()
    maps = [one for one in model.modules() if type(one) is nn.Linear and one is not head and one.in_features % 64 == 0]
    held = [one.weight.data for one in maps]
    expected = list(scores(model, pieces))
    found = {}
    print("| weights | nats a token | same first choice |\n|---|---|---|")
    for name, rounded in WAYS.items():
        for one, weight in zip(maps, held, strict=True):
            one.weight.data = rounded(weight)
        nats, same = [], []
        for piece, exact in zip(scores(model, pieces), expected, strict=True):
            nats.append((exact.exp() * (exact - piece)).sum(-1))
            same.append((exact.argmax(-1) == piece.argmax(-1)).float())
        found[name] = {"nats": float(torch.cat(nats).mean()), "same_first": float(torch.cat(same).mean())}
        print(f"| {name} | {found[name]['nats']:.4f} | {found[name]['same_first']:.1%} |", flush=True)
    if options.out:
        told = {"model": Path(options.model).name, "text": text.name, "tokens": len(ids), "maps": len(maps)}
        told |= {"processor": platform.processor() or platform.machine(), "ways": found}
        options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
