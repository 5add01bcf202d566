"""Check the input of a batch, count its tokens and plan the memory, without answers and without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kvlite.batch.item import Failure
from kvlite.batch.model import ChooseModel, Model
from kvlite.batch.prepare import Preparer
from kvlite.batch.row_sizes import row_sizes
from kvlite.batch.source import Input
from kvlite.console import Console
from kvlite.errors import BatchFailed
from kvlite.llm.answer import check_answer
from kvlite.memory.fit import LONGEST
from kvlite.memory.format import SlotFormat, human_bytes
from kvlite.memory.plan import CachePlan
from kvlite.options import AnswerOptions, BatchOptions

MOST_SHOWN = 20  # failures named one by one

_COUNTED = ("ok", "failed", "prompt_tokens", "longest_prompt_tokens", "most_new_tokens", "may_evict")


def dry_run(options: BatchOptions, answer: AnswerOptions, choose_model: ChooseModel, console: Console) -> None:
    """Report what the batch would take, as lines or JSON. Raises BatchFailed where lines cannot be answered."""
    check_answer(answer)  # refuses what it cannot be before anything is read
    source = Input(options)
    survey = source.survey()
    if source.setting_columns:
        console.note(f"columns that are settings of their rows: {', '.join(source.setting_columns)}")
    model = choose_model(survey.model)
    text, fit = model.plan()
    preparer = Preparer.of(model, text, fit.shape.window, answer, options)
    needs: Counter[int] = Counter()  # by slots, the answers that need so many at their longest
    count = dict.fromkeys(_COUNTED, 0)
    for item in source.select(survey.items):
        work = preparer.prepare(item)
        if isinstance(work, Failure):
            count["failed"] += 1
            if count["failed"] <= MOST_SHOWN:
                console.warn(f"line {item.line}: {work.message}")
            continue
        count["ok"] += 1
        for request in work.requests:
            tokens, most = len(request.ids), request.max_tokens or 0
            count["prompt_tokens"] += tokens
            count["longest_prompt_tokens"] = max(count["longest_prompt_tokens"], tokens)
            count["most_new_tokens"] += most
            needs[tokens + most] += 1
    lines, budget = max(1, needs.total()), model.spec.budget
    most = fit.rows(budget, LONGEST, 1).slots
    sizes = row_sizes([*needs.elements()] or [1], most, lambda size: fit.rows(budget, size, lines).rows)
    plans = [fit.rows(budget, size, lines) for size in sizes]
    count["may_evict"] = sum(many for need, many in needs.items() if need > plans[-1].fewest)
    _report(count, model, fit.spec.slot_format, plans, console)
    if count["failed"]:
        raise BatchFailed(f"{count['failed']} of {count['ok'] + count['failed']} lines cannot be answered")


def _report(
    count: dict[str, int], model: Model, stored: SlotFormat, plans: Sequence[CachePlan], console: Console
) -> None:
    """Show the counts, and the cache of the longest rows."""
    name, plan = model.identity(), plans[-1]
    is_provisional = stored.is_quantised and model.spec.stored is None  # the weights may not tolerate such slots
    if console.as_json:
        kv = {
            "budget_bytes": plan.budget_bytes,
            "reserved_bytes": plan.reserved_bytes,
            "dtype": stored.name,
            "is_provisional": is_provisional,
        }
        console.json({"model": name, **count, "rows": plan.rows, "slots": plan.slots, "kv": kv})
        return
    size = f"{human_bytes(plan.reserved_bytes)} of {human_bytes(plan.budget_bytes)}{stored.label}"
    console.line(f"model      {name}")
    console.line(f"records    {count['ok']} ok, {count['failed']} cannot be answered")
    console.line(f"prompts    {count['prompt_tokens']:,} tokens, the longest {count['longest_prompt_tokens']:,}")
    console.line(f"answers    at most {count['most_new_tokens']:,} tokens")
    console.line(f"KV cache   {size}{', if the model tolerates that' if is_provisional else ''}")
    console.line(f"rows       {', then '.join(f'{one.rows} of {one.slots:,} tokens each' for one in plans)}")
    console.line(f"may evict  {count['may_evict']} answers, if they grow to max_tokens")
