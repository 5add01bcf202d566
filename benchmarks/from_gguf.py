"""A GGUF file in kvlite beside transformers, which unpacks it, and llama.cpp: tokens, divergence, memory, times.

    python benchmarks/from_gguf.py FILE.gguf --text TEXT --node-modules DIR --out benchmarks/results/gguf-smollm2.json

Greedy tokens are compared in float32, the end of an answer passed over; the divergence is that of the next token over
1,200 tokens of the text from transformers' model in float32. Times are of the processor, on one thread, each engine in
a process of its own; imports are counted apart. `kvlite, first start` makes the folder of config and tokenizer and the
checks that later starts take over. DIR is where `npm install node-llama-cpp` was run; without it llama.cpp is left out,
and without a text the divergence.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
PROMPTS = (
    "What is the capital of France?",
    "Write a short story about a lighthouse keeper.",
    "Explain how photosynthesis works.",
    "List five tips for better sleep.",
    "Write a function in Python that reverses a list.",
)
CONTEXT, WINDOWS, WINDOW, SKIPPED = 128, 4, 300, 8
"""Tokens before the answer that is timed; pieces of text, the tokens of each, and the first ones that do not count."""


def whole(file: Path, dtype: str) -> Any:
    """The model as transformers unpacks it."""
    import torch
    import transformers

    how: dict[str, Any] = {"gguf_file": file.name, "dtype": getattr(torch, dtype)}
    if hasattr(transformers, "GgufConfig"):
        how["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, **how).eval()


def prompts(file: Path) -> list[list[int]]:
    """The prompts in the file's chat template, or as they are where it has none."""
    from transformers import AutoTokenizer

    from kvlite.gguf.folder import gguf_folder
    from kvlite.gguf.header import read_header

    tokenizer = AutoTokenizer.from_pretrained(gguf_folder(read_header(file)))
    if tokenizer.chat_template is None:
        return tokenizer(list(PROMPTS))["input_ids"]
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]


def our_answers(file: Path, tokens: int, dtype: str) -> list[list[int]]:
    """Greedy tokens of kvlite, with room for everything."""
    from kvlite import LLM
    from kvlite.engine.request import Request, Sampling, Token

    with LLM(file, dtype=dtype, kv_budget=f"{tokens + 200}tok") as llm:
        asked = [Request("a", tuple(ids), Sampling(), max_tokens=tokens) for ids in prompts(file)]
        return [[one.id for one in llm.engine.run([ask]) if isinstance(one, Token)] for ask in asked]


def their_answers(file: Path, tokens: int, dtype: str) -> list[list[int]]:
    """Greedy tokens of transformers."""
    import torch

    model, found = whole(file, dtype), []
    model.generation_config.eos_token_id = None
    for prompt in prompts(file):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
        found.append(out[0, len(prompt) :].tolist())
    return found


def same_tokens(file: Path, tokens: int, dtype: str) -> list[int]:
    """Tokens of each answer that are the same from its start on."""
    found = []
    for ours, theirs in zip(our_answers(file, tokens, dtype), their_answers(file, tokens, dtype), strict=True):
        differ = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        found.append(next(differ, len(theirs)))
    return found


def divergence(file: Path, text: str) -> dict[str, dict[str, float]]:
    """Nats a token from float32, and the share of first choices that stay: packed, by prompt and step, and unpacked."""
    import torch

    from kvlite import LLM
    from kvlite_kernels.packed import Packed4, PackedPair

    with LLM(file, kv_budget="64tok", fuse=False) as llm:
        loaded = llm.model.loaded
    loaded.model.set_attn_implementation("eager")
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids[0][: WINDOWS * WINDOW].view(WINDOWS, WINDOW)

    @torch.inference_mode()
    def logits(model: Any) -> Any:
        parts = [model(one[None], use_cache=False).logits[0, SKIPPED:] for one in ids]
        return torch.cat(parts).float().log_softmax(-1)

    exact = logits(whole(file, "float32"))
    found = {"transformers, bfloat16": logits(whole(file, "bfloat16")), "kvlite, prompts": logits(loaded.model)}
    for kind in (Packed4, PackedPair):
        kind.most_rows = WINDOW  # type: ignore[misc]  # as if each token came alone
    found["kvlite, steps"] = logits(loaded.model)
    return {
        name: {
            "nats": float((exact.exp() * (exact - one)).sum(-1).mean()),
            "same_first": float((exact.argmax(-1) == one.argmax(-1)).float().mean()),
        }
        for name, one in found.items()
    }


def scattered(vocab: int) -> tuple[int, ...]:
    """Ids from all over a vocabulary."""
    return tuple((7919 * i + 11) % vocab for i in range(CONTEXT))


def spent(since: list[float]) -> float:
    """Seconds of the processor since the last call."""
    before, since[0] = since[0], time.process_time()
    return since[0] - before


def time_ours(file: Path, tokens: int) -> dict[str, Any]:
    """Start kvlite and answer."""
    since = [time.process_time()]
    import kvlite.engine.engine
    import kvlite.llm.text_model
    import kvlite.models.loading  # noqa: F401
    from kvlite import LLM
    from kvlite.engine.request import Request, Sampling

    took: dict[str, Any] = {"import_s": spent(since), "import_bytes": peak()}
    with LLM(file, kv_budget=f"{2 * CONTEXT + 2 * tokens}tok") as llm:
        took |= {"load_s": spent(since), "peak_bytes": peak(), "weight_bytes": llm.model.loaded.weight_bytes}
        for _ in range(2):  # the first warms up
            ids = scattered(llm.model.loaded.shape.vocab)
            events = llm.engine.run([Request("a", ids, Sampling(), max_tokens=tokens + 1)])
            next(events)
            spent(since)
            took["step_s"] = sum(1 for _ in events) and spent(since) / tokens
    return took


def time_theirs(file: Path, tokens: int) -> dict[str, Any]:
    """Start transformers, which unpacks into bfloat16, and answer."""
    since = [time.process_time()]
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM  # imported when it is asked for
    transformers.utils.logging.disable_progress_bar()
    took: dict[str, Any] = {"import_s": spent(since), "import_bytes": peak()}
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = whole(file, "bfloat16")
    took |= {"load_s": spent(since), "peak_bytes": peak()}
    took["weight_bytes"] = sum(one.nbytes for one in model.parameters())
    with torch.inference_mode():
        for _ in range(2):
            ids = torch.tensor([scattered(model.config.vocab_size)])
            out = model(ids, use_cache=True, logits_to_keep=1)
            spent(since)
            for _ in range(tokens):
                following = out.logits[:, -1:].argmax(-1)
                out = model(following, past_key_values=out.past_key_values, use_cache=True)
            took["step_s"] = spent(since) / tokens
    return took


def peak() -> int:
    """Most bytes this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(part: str, file: Path, tokens: int, text: Path | None) -> Any:
    """One measurement in this process."""
    if part == "same_tokens":
        return same_tokens(file, tokens, "float32")
    if part == "divergence":
        assert text is not None
        return divergence(file, text.read_text(encoding="utf-8"))
    return time_theirs(file, tokens) if part == "transformers" else time_ours(file, tokens)


def rounds_of(asked: argparse.Namespace, home: Path) -> Iterator[tuple[str, Any]]:
    """Engines and what each took, in turns."""
    ways = [("kvlite, first start", "kvlite"), ("kvlite", "kvlite"), ("transformers", "transformers")]
    for number in range(asked.rounds):
        here = home / str(number)  # of each round a first start
        for name, part in ways:
            yield name, started(asked, part, asked.tokens, here)
        if asked.node_modules:
            script = str(Path(__file__).with_name("llama.mjs"))
            words = [str(asked.node_modules.absolute()), str(asked.file), str(asked.tokens), str(CONTEXT)]
            done = subprocess.run(["node", script, *words], check=True, text=True, capture_output=True)
            took = json.loads(done.stdout.splitlines()[-1])
            yield "llama.cpp", took | {"step_s": took["step_s"][str(CONTEXT)]}


def started(asked: argparse.Namespace, part: str, tokens: int, home: Path) -> Any:
    """The findings of `part` in a process of its own that keeps its files in `home`."""
    command = [sys.executable, __file__, str(asked.file), "--part", part, "--tokens", str(tokens)]
    command += ["--text", str(asked.text)] if asked.text else []
    kept = {name: str(home) for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME")}
    done = subprocess.run(command, text=True, capture_output=True, env={**os.environ, **kept, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print the tables, and write the record where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--text", type=Path, metavar="FILE")
    parser.add_argument("--node-modules", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer that is timed")
    parser.add_argument("--compared", type=int, default=200, help="tokens of an answer that is compared")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(child(asked.part, asked.file, asked.tokens, asked.text)))
        return
    record: dict[str, Any] = {"file": asked.file.name, "processor": platform.machine(), "tokens": asked.compared}
    with TemporaryDirectory() as home:
        record["same_tokens"] = started(asked, "same_tokens", asked.compared, Path(home))
        print(f"the same of {asked.compared} greedy tokens, in float32: {record['same_tokens']}", flush=True)
        if asked.text:
            record["divergence"] = started(asked, "divergence", asked.tokens, Path(home))
            print(json.dumps(record["divergence"], indent=1), flush=True)
        engines: dict[str, list[Any]] = {}
        for name, took in rounds_of(asked, Path(home)):
            engines.setdefault(name, []).append(took)
    record["engines"] = {
        name: {key: median(one[key] for one in found) for key in found[0] if key != "prompt_s"}
        for name, found in engines.items()
    }
    print(table(record["engines"]))
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def table(engines: dict[str, Any]) -> str:
    """The engines, a row each."""
    lines = ["| engine | imports | ready | peak when ready | above imports | tokens a second |", "|---" * 6 + "|"]
    for name, one in engines.items():
        imports = f"{one['import_s']:.1f} s" if "import_s" in one else ""
        above = f"{(one['peak_bytes'] - one['import_bytes']) / 1e6:,.0f} MB" if "import_bytes" in one else ""
        lines.append(
            f"| {name} | {imports} | {one['load_s']:.1f} s | {one['peak_bytes'] / 1e6:,.0f} MB | {above} | "
            f"{1 / one['step_s']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
