"""A batch without its answers: the input checked, its tokens counted, the memory planned. No weights."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from kvlite.batch.item import BadLine, Failure, LineError, Place
from kvlite.batch.job import ChooseModel, Job, Planned
from kvlite.batch.prepare import Preparer
from kvlite.console import Console
from kvlite.errors import BatchFailed
from kvlite.memory.format import human_bytes

MOST_SHOWN = 20  # failures named one by one


@dataclass(slots=True)
class _Count:
    ok: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    longest_prompt: int = 0
    most_new_tokens: int = 0
    over_slots: int = 0


def dry_run(job: Job, choose_model: ChooseModel, console: Console) -> None:
    """Say what the batch would take, as lines or JSON. Raises BatchFailed when lines cannot be asked."""
    survey = job.input.survey()
    entries = job.input.entries()
    first = next(entries, None)
    named = survey.model if survey else getattr(first, "model", None)
    model = choose_model(named)
    planned = model.plan()
    preparer = Preparer(planned.text, job.defaults, model.terms)
    count = _Count()
    for entry in job.input.selection.of(chain([first] if first else [], entries)):
        try:
            if isinstance(entry, BadLine):
                raise LineError(entry.failure.message)
            prepared = preparer.prepare(entry)
        except LineError as refused:
            count.failed += 1
            if count.failed <= MOST_SHOWN:
                console.warn(_located(entry.place, refused.failure))
            continue
        count.ok += 1
        for request in prepared.requests:
            tokens = len(request.ids)
            count.prompt_tokens += tokens
            count.longest_prompt = max(count.longest_prompt, tokens)
            count.most_new_tokens += request.max_tokens or 0
            count.over_slots += tokens + (request.max_tokens or 0) > planned.plan.slots
    for note in (model.note, *planned.text.notes):
        if note:
            console.note(note)
    _show(count, planned, console)
    if count.failed:
        raise BatchFailed(f"{count.failed} of {count.ok + count.failed} lines cannot be asked")


def _located(place: Place, failure: Failure) -> str:
    return f"line {place.line}: {failure.message}"


def _show(count: _Count, planned: Planned, console: Console) -> None:
    plan = planned.plan
    if console.as_json:
        console.json(
            {
                "model": planned.name,
                "ok": count.ok,
                "failed": count.failed,
                "prompt_tokens": count.prompt_tokens,
                "longest_prompt_tokens": count.longest_prompt,
                "most_new_tokens": count.most_new_tokens,
                "may_evict": count.over_slots,
                "kv": {
                    "budget_bytes": plan.budget_bytes,
                    "reserved_bytes": plan.reserved_bytes,
                    "rows": plan.rows,
                    "slots": plan.slots,
                },
            }
        )
        return
    console.line(f"model        {planned.name}")
    console.line(f"records      {count.ok} ok, {count.failed} cannot be asked")
    console.line(f"prompts      {count.prompt_tokens:,} tokens, the longest {count.longest_prompt:,}")
    console.line(f"answers      at most {count.most_new_tokens:,} tokens")
    console.line(f"KV cache     {human_bytes(plan.reserved_bytes)} of {human_bytes(plan.budget_bytes)}")
    console.line(f"rows         {plan.rows} of {plan.slots:,} tokens each")
    console.line(f"may evict    {count.over_slots} answers, if they grow to max_tokens")
