"""The models that have a short name, and which of them this machine can run, as `kvlite plan` would say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from kvlite.catalog.listing import ListedAlias, list_aliases
from kvlite.catalog.names import STARTER, ModelRef
from kvlite.llm.spec import PlanDevice, RunSpec, find_device
from kvlite.memory.fit import Quote, quote
from kvlite.memory.format import human_bytes
from kvlite.options import BUILT_IN_MODEL, ModelOptions

if TYPE_CHECKING:
    from kvlite.console import Console

_SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Parts of the free memory: a newcomer is shown the largest model that fits each."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A model with a short name and plan's word on it here, as it is or, where only that fits, in 4 bits."""

    model: ListedAlias
    found: Quote

    def __str__(self) -> str:
        cache = self.found.cache
        if not self.found.fits or cache is None:
            return f"no, takes {human_bytes(self.found.memory.total_bytes)}"
        how = "--4bit" if self.found.fit.quant != "none" else "yes"
        return f"{how}, keeps {cache.slots:,} tokens"


def list_known(out: Console) -> None:
    """Write every short name with its repository and plan's word on it."""
    models = list_aliases()
    if out.quiet and not out.as_json:
        for model in models:
            out.line(model.name)
        return
    place = find_device("auto")
    known = [*_verdicts(models, place)]
    if out.as_json:
        out.json([asdict(one.model) | _record(one.found) for one in known], indent=2)
        return
    rows = [
        (
            one.model.name,
            str(one),
            human_bytes(one.model.weight_bytes),
            human_bytes(one.model.kv_bytes_per_token),
            f"{one.model.license}{', gated' if one.model.gated else ''}",
            one.model.repo,
        )
        for one in known
    ]
    out.table(("NAME", "RUNS HERE", "WEIGHTS", "KV/TOK", "LICENCE", "REPO"), rows)
    out.note(f"{_free(place)}; `kvlite plan NAME` says more, `kvlite pull NAME` downloads it")


def show_first(out: Console) -> None:
    """Say on stderr which models, of growing size, this machine can run as they are."""
    place, models = find_device("auto"), sorted(list_aliases(), key=lambda one: -one.weight_bytes)
    shown = [*_verdicts([one for one in models if one.name == STARTER], place)]
    for share in _SHARES:
        smaller = [one for one in models if not one.gated and one.weight_bytes < place.free_bytes * share]
        fitting = (one for one in _verdicts(smaller, place) if one.found.fits and one.found.fit.quant == "none")
        found = next(fitting, shown[-1])
        if found.model.name not in [one.model.name for one in shown]:
            shown.append(found)
    out.note(f"{_free(place)}; of the models that can run there `kvlite ls --aliases` lists all, and these are some:")
    width = max(len(one.model.name) for one in shown)
    for one in shown:
        size = human_bytes(one.model.weight_bytes)
        out.note(f"  kvlite pull {one.model.name:<{width}}  {size:>7}, {str(one).removeprefix('yes, ')}")


def _verdicts(models: list[ListedAlias], place: PlanDevice) -> Iterator[Verdict]:
    from kvlite.catalog.files import model_facts

    spec = RunSpec.of(ModelOptions(model=BUILT_IN_MODEL))
    for model in models:
        own = replace(spec, ref=ModelRef(alias=model.name, repo=model.repo))
        facts = model_facts(own.ref, offline=True)
        fit = own.fit(facts, place)
        found = quote(fit, own.budget)
        if not found.fits and not fit.shape.is_quantised:
            smaller = quote(replace(fit, quant="4bit"), own.budget)
            found = smaller if smaller.fits else found
        yield Verdict(model, found)


def _record(found: Quote) -> dict[str, object]:
    return {
        "fits": found.fits,
        "quant": found.fit.quant,
        "tokens": found.cache.slots if found.cache else 0,
        "total_bytes": found.memory.total_bytes,
    }


def _free(place: PlanDevice) -> str:
    return f"{human_bytes(place.free_bytes)} are free on {place.name} now"
