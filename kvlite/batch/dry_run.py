"""Check the input of a batch, count its tokens and plan the memory, without answers and without weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvlite.batch.item import BadLine, Entry, Failure, LineError
from kvlite.batch.job import BatchJob, ChooseModel, Planned
from kvlite.batch.prepare import Prepared, Preparer
from kvlite.batch.source import first_model
from kvlite.console import Console
from kvlite.errors import BatchFailed
from kvlite.memory.format import human_bytes

MOST_SHOWN = 20  # failures named one by one


def dry_run(job: BatchJob, choose_model: ChooseModel, console: Console) -> None:
    """Report what the batch would take, as lines or JSON. Raises BatchFailed where lines cannot be answered."""
    survey = job.input.survey()
    from_lines, entries = first_model(job.input.entries())
    model = choose_model(survey.model if survey else from_lines)
    planned = model.plan()
    preparer = Preparer(planned.text, job.defaults, model.terms)
    count = _counted(job.input.selection.of(entries), preparer, planned.plan.fewest, console)
    for note in (model.note, *planned.text.notes):
        if note:
            console.note(note)
    if console.as_json:
        console.json(_as_json(count, planned))
    else:
        _show(count, planned, console)
    if count.failed:
        raise BatchFailed(f"{count.failed} of {count.ok + count.failed} lines cannot be answered")


@dataclass(slots=True)
class _Count:
    """Records, and the tokens of those that can be asked; `may_evict` answers outgrow a row at their longest."""

    ok: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    longest_prompt_tokens: int = 0
    most_new_tokens: int = 0
    may_evict: int = 0

    def add(self, prepared: Prepared, slots: int) -> None:
        """Count one record."""
        self.ok += 1
        for request in prepared.requests:
            tokens, most = len(request.ids), request.max_tokens or 0
            self.prompt_tokens += tokens
            self.longest_prompt_tokens = max(self.longest_prompt_tokens, tokens)
            self.most_new_tokens += most
            self.may_evict += tokens + most > slots


def _counted(entries: Iterable[Entry], preparer: Preparer, slots: int, console: Console) -> _Count:
    count = _Count()
    for entry in entries:
        checked = _check(entry, preparer)
        if isinstance(checked, Prepared):
            count.add(checked, slots)
            continue
        count.failed += 1
        if count.failed <= MOST_SHOWN:
            console.warn(f"line {entry.place.line}: {checked.message}")
    return count


def _check(entry: Entry, preparer: Preparer) -> Prepared | Failure:
    if isinstance(entry, BadLine):
        return entry.failure
    try:
        return preparer.prepare(entry)
    except LineError as error:
        return error.failure


def _as_json(count: _Count, planned: Planned) -> dict[str, object]:
    plan = planned.plan
    return {
        "model": planned.name,
        "ok": count.ok,
        "failed": count.failed,
        "prompt_tokens": count.prompt_tokens,
        "longest_prompt_tokens": count.longest_prompt_tokens,
        "most_new_tokens": count.most_new_tokens,
        "may_evict": count.may_evict,
        "rows": plan.rows,
        "slots": plan.slots,
        "kv": {
            "budget_bytes": plan.budget_bytes,
            "reserved_bytes": plan.reserved_bytes,
            "dtype": planned.stored.name,
            "is_provisional": planned.is_provisional,
        },
    }


def _show(count: _Count, planned: Planned, console: Console) -> None:
    plan = planned.plan
    console.line(f"model      {planned.name}")
    console.line(f"records    {count.ok} ok, {count.failed} cannot be answered")
    console.line(f"prompts    {count.prompt_tokens:,} tokens, the longest {count.longest_prompt_tokens:,}")
    console.line(f"answers    at most {count.most_new_tokens:,} tokens")
    size = f"{human_bytes(plan.reserved_bytes)} of {human_bytes(plan.budget_bytes)}{planned.stored.label}"
    console.line(f"KV cache   {size}{', if the model tolerates that' if planned.is_provisional else ''}")
    console.line(f"rows       {plan.rows} of {plan.slots:,} tokens each")
    console.line(f"may evict  {count.may_evict} answers, if they grow to max_tokens")
