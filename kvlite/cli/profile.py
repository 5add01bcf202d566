"""`kvlite profile`: which KV heads of a model need many slots, measured once and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import without
from kvlite.errors import OutputError
from kvlite.flags import option, read_file_name
from kvlite.options import ModelOptions

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.profiles.profile import HeadProfile

_SHOWN = (0.05, 0.2, 0.4)
_OF_THE_CACHE = ("think", "pin_system", "prefill_chunk", "on_full", "kernels", "capture", "speculate", "fuse")
_OF_THE_BUDGET = ("kv_budget", "kv_per_seq", "kv_policy", "kv_dtype", "profile")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """The measurement, and where else the profile goes."""

    again: bool = option(False, from_settings=False, help="Measure even where there is a profile.")
    export: str | None = option(
        None, metavar="FILE", from_settings=False, parse=read_file_name, help="Write the profile there, too."
    )


def profile(
    given: ProfileOptions,
    options: Annotated[ModelOptions, without(*_OF_THE_CACHE, *_OF_THE_BUDGET)],
    call: Invocation,
) -> None:
    """Measure once which KV heads of a model need many slots; keep that, and draw it."""
    from kvlite.llm.head_profile import keep, measure
    from kvlite.llm.spec import RunSpec
    from kvlite.llm.text_model import TextModel, import_engine
    from kvlite.profiles.store import Profiles

    out, store = call.console, Profiles()
    spec = RunSpec.of(call.with_model(options))
    files = spec.files(out.note)
    found = None if given.again else store.of_files(files)
    if found is None:
        import_engine()
        model = TextModel.load(spec, out, files)
        known = None if given.again else store.of_weights(model.loaded.fingerprint)
        found = keep(known or measure(model, out), model, store)
    if given.export is not None:
        _write(found, Path(given.export))
    if out.as_json:
        out.answer(found.to_json())
    elif not out.quiet:
        _show(found, out)


def _write(found: HeadProfile, path: Path) -> None:
    try:
        path.write_text(found.to_json(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _show(found: HeadProfile, out: Console) -> None:
    from kvlite.profiles.picture import picture

    out.line(f"profile {found.fingerprint} of {found}, measured on {found.tokens:,} tokens")
    for share in _SHOWN:
        needs = found.at(share)
        flat = sorted(need for layer in needs for need in layer)
        out.line()
        out.line(
            f"where heads keep {share:.0%} of a text on average, they need from {flat[0]:.1%} to {flat[-1]:.0%} "
            f"of it, half of them {flat[len(flat) // 2]:.1%} or less"
        )
        for line in picture(needs, out.width):
            out.line(line)
