"""A whole evaluation as one value: the model, the summaries and the conclusions; and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kvlite.evaluation.conclusion import conclusion
from kvlite.evaluation.evaluation import Measured
from kvlite.evaluation.intervals import Estimate
from kvlite.evaluation.results import Answered
from kvlite.evaluation.summary import Line, Summary


@dataclass(frozen=True, slots=True)
class Report:
    """`model` is name@revision, `identity` its weights, `versions` those of kvlite and what it stands on."""

    model: str
    identity: str
    dtype: str
    quant: str
    device: str
    versions: Mapping[str, str]
    summaries: tuple[Summary, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, the single answers included; what cannot be said is null."""
        head = {name: getattr(self, name) for name in ("model", "identity", "dtype", "quant", "device")}
        suites = [_suite(summary) for summary in self.summaries]
        return {"schema": "kvlite.eval/1", **head, "versions": dict(self.versions), "suites": suites}


def _suite(summary: Summary) -> dict[str, Any]:
    result = summary.result
    return {
        **asdict(result.suite),
        "tokens": result.tokens,
        "full_cache_bytes": result.full_cache_bytes,
        "distance": summary.unit,
        "unreached": summary.unreached,
        "verdict": conclusion(summary),
        "variants": [_variant(line, each) for line, each in zip(summary.lines, result.measured, strict=True)],
    }


def _variant(line: Line, measured: Measured) -> dict[str, Any]:
    placed = line.placed
    variant, plan = placed.variant, placed.plan
    return {
        "name": variant.name,
        "policy": variant.policy.name,
        "parameters": asdict(variant.policy),
        "kv_dtype": placed.stored.name,
        "is_reference": variant.is_reference,
        "budget": None if variant.budget is None else str(variant.budget),
        "budget_bytes": plan.budget_bytes,
        "reserved_bytes": plan.reserved_bytes,
        "slots": plan.slots,
        "T": plan.chunk,
        "count": line.count,
        "figures": {name: _estimate(estimate) for name, estimate in line.figures.items()},
        "by_distance": [
            {"over": part.over, "upto": part.upto, "count": part.count, **_estimate(part.estimate)}
            for part in line.parts
        ],
        "answers": [
            {"conversation": each.number, **asdict(outcome)}
            for each in measured.results
            if isinstance(each, Answered)
            for outcome in each.outcomes
        ],
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else round(value, 6) for name, value in asdict(estimate).items()}
