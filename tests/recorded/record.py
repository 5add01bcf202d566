"""Record anew what a model answers: `python -m tests.recorded.record demo [FOLDER]`.

Prompts and cases are those of the file. For where an answer is meant to change; the diff then shows which.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version

import torch

from kvlite.engine import decoding
from kvlite.engine.sampling import Draw, sample
from tests.recorded.door import generate
from tests.recorded.recording import Recording, read, write

_gaps: dict[int, list[float]] = {}
"""The distance of the best logit above the next, token by token, by the number of the request."""


def record(recording: Recording, model: str) -> None:
    """Put the answers of `model`, a name or folder, into every entry of `recording`."""
    torch.set_num_threads(1)
    decoding.sample = _sample_and_note  # type: ignore[assignment]
    for (name, case, _), entry in zip(recording.cases(), recording.entries, strict=True):
        _gaps.clear()
        entry["answers"] = [
            {"ids": answer.ids, "gaps": _gaps[index], "counts": answer.counts}
            for index, answer in enumerate(generate(model, case))
        ]
        print(name, min(min(gaps) for gaps in _gaps.values()), entry["answers"][-1]["counts"], flush=True)  # noqa: T201
    recording.made_with = {name: version(name) for name in ("torch", "transformers")}
    recording.made_with["processor"] = platform.machine() + " " + torch.backends.cpu.get_cpu_capability()


def _sample_and_note(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    best, second = logits.float().topk(2, -1).values.T
    for draw, gap in zip(draws, (best - second).tolist(), strict=True):
        _gaps.setdefault(draw.sampling.seed, []).append(float(f"{gap:.2g}"))
    return sample(logits, draws)


if __name__ == "__main__":
    found = read(sys.argv[1])
    record(found, sys.argv[-1])
    write(found)
