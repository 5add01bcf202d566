"""A run as one JSON, and as one page of tables in Markdown."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kvlite.record.measure import versions
from kvlite.speed.roofline import Ceilings, device_name
from peers.peer import Peer
from peers.turns import Run

SCHEMA = "kvlite.benchmarks/2"
Rows = list[dict[str, Any]]


@dataclass
class Record:
    """Measurements on one device; `not_available`, `failed` and `left_out` are what is not among them, and why."""

    shape: str
    dtype: str
    device: torch.device
    ceilings: Ceilings
    notes: dict[str, str] = field(default_factory=dict)
    decode: Rows = field(default_factory=list)
    prefill: Rows = field(default_factory=list)
    not_available: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def update(self, peers: Mapping[str, Peer], run: Run, out: Path | None) -> None:
        """Take over what the run says of itself, and write `out`.json and `out`.md where they are asked for."""
        self.notes = {peer.name: peer.note for peer in peers.values()}
        self.failed, self.left_out = run.failed, run.left_out
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.with_name(out.name + ".json").write_text(json.dumps(self.to_json(), indent=2) + "\n")
            out.with_name(out.name + ".md").write_text(self.to_markdown())

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "schema": SCHEMA,
            "command": _command(),
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "shape": self.shape,
            "dtype": self.dtype,
            "ceilings": asdict(self.ceilings),
            "peers": self.notes,
            "decode": self.decode,
            "prefill": self.prefill,
            "not_available": self.not_available,
            "failed": self.failed,
            "left_out": self.left_out,
        }

    def to_markdown(self) -> str:
        """One page: a line for each engine and case, its rate, and how many times that kvlite's is."""
        copied = self.ceilings.copy_bytes_s / 1e9
        software = ", ".join(f"{name} {version}" for name, version in versions().items())
        lines = [
            f"# {self.shape}, {self.dtype}, {device_name(self.device)}",
            "",
            f"`{' '.join(_command())}`",
            "",
            f"{software}. In the same run the device copies {copied:,.1f} GB/s.",
            "Random weights, random prompts, greedy, medians.",
        ]
        for title, rows in (("Decoding", self.decode), ("Prompts", self.prefill)):
            if rows:
                lines += ["", f"## {title}", "", *_table(rows)]
        lines += [""] + [f"- {name}: {note}" for name, note in self.notes.items() if note]
        missing = {**self.not_available, **self.failed, **dict.fromkeys(self.left_out, "no time left")}
        lines += [f"- not measured: {name}: {why}" for name, why in missing.items()]
        return "\n".join(lines) + "\n"


def _command() -> list[str]:
    """The command, but of whole paths their last name: where things lie on this machine is nobody's business."""
    return ["python", *(re.sub(r"(^|=)/(?:[^/]*/)*", r"\1", word) for word in sys.argv)]


def _table(rows: Rows) -> list[str]:
    lines = ["| context | slots | engine | tok/s | kvlite over it | of copy | peak |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        case = (row["context"], row["slots"])
        own = next((r["tokens_s"] for r in rows if (r["context"], r["slots"], r["peer"]) == (*case, "kvlite")), None)
        share, peak = row.get("share_of_copy"), row["peak_bytes"]
        cells = [f"{case[0]:,}", f"{case[1]:,}", row["peer"], f"{row['tokens_s']:,.1f}"]
        cells += ["-" if own is None else f"{own / row['tokens_s']:.2f}", "-" if share is None else f"{share:.1%}"]
        lines.append(f"| {' | '.join([*cells, '-' if peak is None else f'{peak / 1e9:.1f} GB'])} |")
    return lines
