"""Prompts nine tenths of which all share, and several answers to one prompt: fed once, or each in full.

    python benchmarks/shared.py FOLDER TEXT --out benchmarks/results/shared-smollm2-cpu.json

TEXT is prose, from which the prompts are cut: a document of 900 tokens and a part of 100 that differs, with short
answers; then one prompt of 1,000 tokens with `n` = 8, beside eight lines of it that share nothing. Greedy, in float32,
processor time of a process of its own, without loading.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from itertools import chain
from pathlib import Path
from typing import Any

from one_batch import run_batch

OPTIONS = ("--greedy", "--dtype", "float32", "--kv-dtype", "float32")
WORDS_A_TOKEN = 0.75


def line(key: str, prompt: str, most: int, n: int = 1) -> dict[str, Any]:
    """A line of OpenAI's batch form."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": most, "n": n}
    return {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}


def measure(model: str, lines: list[dict[str, Any]], *more: str) -> tuple[float, list[list[str]], int]:
    """The processor seconds of a batch, the answers to each line, and the tokens that were not fed again."""
    ran = run_batch(model, lines, "--ordered", *OPTIONS, *more)
    bodies = [record["response"]["body"] for record in ran.records]
    texts = [[choice["message"]["content"] for choice in body["choices"]] for body in bodies]
    return ran.used_s, texts, int(ran.summary["shared_tokens"])


def compare(model: str, lines: list[dict[str, Any]], apart: list[dict[str, Any]], load_s: float) -> dict[str, Any]:
    """Both ways, and whether they say the same."""
    shared_s, shared, cached = measure(model, lines)
    apart_s, alone, none = measure(model, apart, "--no-prefix-cache")
    assert none == 0
    return {
        "shared_s": round(shared_s - load_s, 2),
        "apart_s": round(apart_s - load_s, 2),
        "times": round((apart_s - load_s) / (shared_s - load_s), 2),
        "cached_tokens": cached,
        "same_answers": [*chain(*shared)] == [*chain(*alone)],
    }


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--lines", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=1000, help="of a prompt")
    parser.add_argument("--answer", type=int, default=8, help="most tokens of an answer")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    words = asked.text.read_text("utf-8").split()
    common, own = (int(asked.tokens * share * WORDS_A_TOKEN) for share in (0.9, 0.1))
    document = " ".join(words[:common])
    parts = [" ".join(words[common + own * n : common + own * (n + 1)]) for n in range(asked.lines)]
    lines = [line(f"p{n}", f"{document}\n\n{part}", asked.answer) for n, part in enumerate(parts)]
    for _ in range(2):  # the first may check the model
        load_s, _, _ = measure(asked.model, [line("one", "Hi", 1)])
    of_one = lines[0]["body"]["messages"][0]["content"]
    found: dict[str, Any] = {
        "model": Path(asked.model).name,
        "lines": asked.lines,
        "tokens": asked.tokens,
        "answer": asked.answer,
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "nine tenths shared": compare(asked.model, lines, lines, load_s),
        "n = 8": compare(
            asked.model,
            [line("one", of_one, asked.answer, n=8)],
            [line(f"p{n}", of_one, asked.answer) for n in range(8)],
            load_s,
        ),
    }
    written = json.dumps(found, indent=1)
    if asked.out is not None:
        asked.out.write_text(f"{written}\n", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
