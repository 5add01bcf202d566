"""A run as one JSON, and as one page of tables in Markdown: ratios first, absolute figures second."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from kvlite.record.measure import installed_versions
from kvlite.speed.ceilings import Ceilings, device_name

SCHEMA = "kvlite.benchmarks/1"
PARTS = ("decode", "prefill", "batch", "drift", "kernels")
Rows = list[dict[str, Any]]


@dataclass
class Record:
    """What was measured on what; `parts` are rows by part, `failed` and `left_out` what is not among them, and why."""

    shape: str
    dtype: str
    device: torch.device
    ceilings: Ceilings
    notes: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Rows] = field(default_factory=dict)
    not_available: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "schema": SCHEMA,
            "command": _command(),
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "versions": installed_versions(),
            "shape": self.shape,
            "dtype": self.dtype,
            "ceilings": asdict(self.ceilings),
            "peers": self.notes,
            **{part: self.parts[part] for part in PARTS if part in self.parts},
            "not_available": self.not_available,
            "failed": self.failed,
            "left_out": self.left_out,
        }

    def to_markdown(self) -> str:
        """One page."""
        copied, flops = self.ceilings.copy_bytes_s / 1e9, self.ceilings.flop_s / 1e12
        versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
        lines = [
            f"# {self.shape}, {self.dtype}, {device_name(self.device)}",
            "",
            f"`{' '.join(_command())}`",
            "",
            f"{versions}. In the same run the device copies {copied:,.1f} GB/s and multiplies at {flops:,.3g} TFLOP/s.",
            "Random weights, random prompts, greedy, medians; `x` columns are kvlite over that engine.",
        ]
        for title, rows in self._tables():
            lines += ["", f"## {title}", "", *_markdown(rows)]
        lines += [""] + [f"- {name}: {note}" for name, note in self.notes.items() if note]
        missing = {**self.not_available, **self.failed, **dict.fromkeys(self.left_out, "no time left")}
        lines += [f"- not measured: {name}: {why}" for name, why in missing.items()]
        return "\n".join(lines) + "\n"

    def _tables(self) -> list[tuple[str, list[list[str]]]]:
        found = []
        for part, title, keys in (
            ("decode", "Decoding, tokens per second", ("context", "slots")),
            ("prefill", "Prompts, tokens per second", ("context", "slots")),
            ("batch", "Batches in equal KV bytes, answer tokens per second", ("context", "new_tokens", "slots")),
        ):
            if self.parts.get(part):
                found.append((title, _ratios(self.parts[part], keys)))
            if part == "prefill" and self.parts.get(part):
                found.append(("Prompts beside the shortest under as many slots", _lengths(self.parts[part])))
        if self.parts.get("drift"):
            found.append(("Drift with all slots full", _drift(self.parts["drift"])))
        if self.parts.get("kernels"):
            found.append(("Parts of a decode step", _kernels(self.parts["kernels"])))
        return found


def _command() -> list[str]:
    """What was typed, but of whole paths their last name: where things lie on this machine is nobody's business."""
    return ["python", *(re.sub(r"(^|=)/(?:[^/]*/)*", r"\1", word) for word in sys.argv)]


def _ratios(rows: Rows, keys: Sequence[str]) -> list[list[str]]:
    """A line for each case: kvlite's rate and share of copy, then each peer's rate and how many times it kvlite is."""
    cases = list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
    names = list(dict.fromkeys(row["peer"] for row in rows))
    others = [name for name in names if name != "kvlite"]
    has_share = "share_of_copy" in rows[0]
    header = [*keys, "kvlite", *(["of copy"] if has_share else []), *(c for name in others for c in (name, "x"))]
    lines = [header]
    for case in cases:
        of = {row["peer"]: row for row in rows if tuple(row[key] for key in keys) == case}
        own = of.get("kvlite")
        line = [*(f"{value:,}" for value in case), _rate(own)]
        if has_share:
            share = None if own is None else own["share_of_copy"]
            line.append("-" if share is None else f"{share:.1%}")
        for name in others:
            ratio = f"{own['tokens_s'] / of[name]['tokens_s']:.2f}" if own is not None and name in of else "-"
            line += [_rate(of.get(name)), ratio]
        lines.append(line)
    return lines


def _rate(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    rows = f" ({row['rows']} rows)" if "rows" in row else ""
    peak = "" if row["peak_bytes"] is None else f", {row['peak_bytes'] / 1e9:.1f} GB"
    return f"{row['tokens_s']:,.1f}{rows}{peak}"


def _lengths(rows: Rows) -> list[list[str]]:
    """Of engines that count their slots: rates by the clock and by the processor as shares of the shortest prompt's."""
    lines = [["peer", "slots", "context", "tokens/s", "of the shortest", "by processor time", "live slots"]]
    for row in rows:
        if row["kv_bytes"] is None:
            continue
        alike = [each for each in rows if (each["peer"], each["slots"]) == (row["peer"], row["slots"])]
        shortest = min(alike, key=lambda each: each["context"])
        by_processor = row["context"] / row["processor_s"] / (shortest["context"] / shortest["processor_s"])
        lines.append([row["peer"], f"{row['slots']:,}", f"{row['context']:,}", f"{row['tokens_s']:,.0f}",
                      f"{row['tokens_s'] / shortest['tokens_s']:.2f}", f"{by_processor:.2f}",
                      f"{row['kv_bytes']:,} B"])  # fmt: skip
    return lines


def _drift(rows: Rows) -> list[list[str]]:
    header = ["peer", "tokens seen", "tokens/s", "median", "99 %", "drift"]
    return [header] + [
        [row["peer"], f"{row['tokens_seen']:,}", f"{row['tokens_s']:,.1f}", f"{row['median_s'] * 1e3:.3f} ms",
         f"{row['p99_s'] * 1e3:.3f} ms", f"{row['drift']:+.1%}"]
        for row in rows
    ]  # fmt: skip


def _kernels(rows: Rows) -> list[list[str]]:
    header = ["kernel", "a call", "bytes", "GB/s", "of copy"]
    return [header] + [
        [row["kernel"], f"{row['call_s'] * 1e6:,.1f} us", f"{row['bytes']:,}", f"{row['bytes_s'] / 1e9:,.1f}",
         f"{row['share_of_copy']:.1%}"]
        for row in rows
    ]  # fmt: skip


def _markdown(lines: list[list[str]]) -> list[str]:
    header, *rows = [f"| {' | '.join(line)} |" for line in lines]
    return [header, "|" + "---|" * len(lines[0]), *rows]
