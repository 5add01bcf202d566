"""An evaluation as JSON, the single answers included; what cannot be said is null."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kvlite.evaluation.conclusion import conclusion
from kvlite.evaluation.intervals import Estimate
from kvlite.evaluation.results import Answered
from kvlite.evaluation.summary import Line, Summary


def eval_json(about: Mapping[str, Any], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Everything; `about` says which model was measured and on what."""
    return {"schema": "kvlite.eval/1", **about, "suites": [_suite(summary) for summary in summaries]}


def _suite(summary: Summary) -> dict[str, Any]:
    return {
        **asdict(summary.suite),
        "tokens": summary.tokens,
        "full_cache_bytes": summary.full_cache_bytes,
        "distance": summary.unit,
        "unreached": summary.unreached,
        "verdict": conclusion(summary),
        "variants": [_variant(line) for line in summary.lines],
    }


def _variant(line: Line) -> dict[str, Any]:
    variant, plan = line.placed.variant, line.placed.plan
    return {
        "name": variant.name,
        "policy": variant.policy.name,
        "parameters": asdict(variant.policy),
        "kv_dtype": line.placed.spec.slot_format.name,
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
            for each in line.results
            if isinstance(each, Answered)
            for outcome in each.outcomes
        ],
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else round(value, 6) for name, value in asdict(estimate).items()}
