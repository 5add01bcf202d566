"""Recorded greedy tokens as a file: prompts by name, and cases with their answers, one line each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.recorded.door import Case

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Recorded:
    """One answer: its ids, how far the best logit was above the next at each of them, and the counts."""

    ids: list[int]
    gaps: list[float]
    counts: list[int]


@dataclass(slots=True)
class Recording:
    """The record of one model: `entries` are cases as the file writes them, their answers in them."""

    model: str
    dtype: str
    made_with: dict[str, str]
    prompts: dict[str, list[int]]
    entries: list[dict[str, Any]]

    def cases(self) -> Iterator[tuple[str, Case, list[Recorded]]]:
        """Every case with a name of its own and the answers that were recorded."""
        for entry in self.entries:
            count = len(entry["prompts"])
            kind = f"{count} rows" if entry.get("together") else f"{count} turns" if count > 1 else "one prompt"
            kind = "pinned" if entry.get("pins") else kind
            case = Case(
                entry["policy"],
                entry["slots"],
                entry["budget"],
                [self.prompts[name] for name in entry["prompts"]],
                entry["max_tokens"],
                bool(entry.get("together")),
                tuple((start, end) for start, end in entry.get("pins", ())),
                entry.get("dtype", "auto"),
            )
            computed = f"in-{case.dtype}-" if "dtype" in entry else ""
            answers = [Recorded(**answer) for answer in entry.get("answers", ())]
            yield f"{computed}{entry['policy']}-{entry['slots']}-{kind}".replace(" ", "-"), case, answers


def read(model: str) -> Recording:
    """The recording of the model called `model`."""
    return Recording(**json.loads((FOLDER / f"{model}.json").read_text("utf-8")))


def write(recording: Recording) -> None:
    """Replace the file of `recording.model`; a case is one line, so that a change shows which."""
    head = {name: getattr(recording, name) for name in ("model", "dtype", "made_with", "prompts")}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    entries = ",\n".join(f"  {json.dumps(entry, separators=(',', ':'))}" for entry in recording.entries)
    text = "\n".join(["{", *lines, ' "entries": [', entries, " ]", "}", ""])
    (FOLDER / f"{recording.model}.json").write_text(text, "utf-8")
