"""The facts of one model, as its files tell them, and the rule of what of it can be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvlite.catalog.config import (
    GENERATION,
    TOKENIZER_FILES,
    base_model,
    read_card,
    read_config,
    read_object,
    require_whole_object,
)
from kvlite.catalog.fingerprint import fingerprint
from kvlite.catalog.hub_errors import describe
from kvlite.catalog.names import ModelRef, aliases
from kvlite.catalog.runnable import require_tokenizer, runnable_shape
from kvlite.catalog.snapshots import cached_snapshot
from kvlite.catalog.weights import (
    count_layers,
    read_weights,
    small_files,
    tensor_names,
    weight_files,
)
from kvlite.errors import BrokenModel, ModelError
from kvlite.gguf.families import config_of
from kvlite.gguf.folder import folder_of, generation_of, require_known
from kvlite.gguf.header import Header, part_names, read_header
from kvlite.gguf.packing import block_bytes, packed_bytes, packed_types, parameters
from kvlite.memory.families import is_composite
from kvlite.memory.format import DTYPE_BYTES
from kvlite.memory.prediction import Weights
from kvlite.memory.shape import ModelShape

_TOKENIZER_SETTINGS = "tokenizer_config.json"
_WITHOUT_VOCABULARY = ("ByT5", "Canine", "Perceiver")
"""Tokenizers whose tokens are bytes or characters, so that they need no file."""
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of a model in `folder`, its weights there or in the file of the header `gguf`, and the facts they tell.

    Not all of them need be there. `weights` is None when there are none to measure (a folder with only config.json),
    `revision`, the commit, for a folder of the user's.
    """

    ref: ModelRef
    folder: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    weights: Weights | None = None
    repo: str | None = None
    revision: str | None = None
    license: str | None = None
    base_model: str | None = None
    as_of: str | None = None
    """The day of these facts, where they are the package's own because nothing could be asked."""
    gguf: Header | None = None
    layers: int | None = None
    """The layers that the weights hold, where their names say so."""
    fault: ModelError | None = None
    """The reason why the files, which are all here, are no model that can be loaded."""

    def shape(self, dtype: str | None = None) -> ModelShape:
        """The model's shape, computed in `dtype` or its own: the one rule of what can be run here.

        Raises UnsupportedModel and BrokenModel where it cannot.
        """
        try:
            shape = runnable_shape(
                self.config, model=str(self.ref), base_model=self.base_model, dtype=dtype,
                stored_dtype=self.stored_dtype,
            )  # fmt: skip
        except BrokenModel as error:
            if self.gguf is None:
                raise
            header = f"the header of {self.gguf.path.name}"
            raise BrokenModel(str(error).replace("config.json", header)) from error
        if self.fault is not None:
            raise self.fault
        if self.layers is not None and self.layers < len(shape.layers):
            raise BrokenModel(
                f"config.json counts {len(shape.layers)} layers and the weights in {self.folder} hold {self.layers}; "
                "download it again"
            )
        return shape

    @property
    def stored_dtype(self) -> str | None:
        """The float type most weight bytes are stored in (`bfloat16`); None when unknown."""
        sizes = self.weights.by_dtype if self.weights else {}
        most = max((dtype for dtype in _DTYPES if dtype in sizes), key=sizes.__getitem__, default=None)
        return most and _DTYPES[most]

    @property
    def name(self) -> str:
        """`repo@sha`, or the folder's or alias's name."""
        if self.repo is None or self.ref.quant:
            return str(self.ref)
        return f"{self.repo}@{(self.revision or 'main')[:7]}"

    def identity(self) -> str:
        """Name the model so that resumed work can check it: repository and commit, or place and fingerprint."""
        if self.repo and self.gguf is None:
            return f"{self.repo}@{self.revision}"
        if self.gguf is not None:
            place, files = self.gguf.path, [self.gguf.path.parent / name for name in part_names(self.gguf.path.name)]
        else:
            names = {*small_files(path.name for path in self.folder.iterdir()), *weight_files(self.folder)}
            place, files = self.folder, [self.folder / name for name in names]
        shown = self.ref if self.ref.is_demo else place
        try:
            return f"{shown}@{fingerprint(path for path in files if path.is_file())}"
        except OSError as error:
            raise BrokenModel(f"{error.filename} cannot be read: {error.strerror}") from error


def read_gguf_model(ref: ModelRef, path: Path) -> ModelFiles:
    """The model in a GGUF file. Raises as `read_header` and `require_known` do."""
    snapshot = cached_snapshot(ref.repo or "", ref.revision)
    of_hub: dict[str, Any] = {}
    if snapshot is not None and path.is_relative_to(snapshot):
        of_hub = {"repo": ref.repo, "revision": snapshot.name}
    header = read_header(path)
    return ModelFiles(ref=ref, folder=folder_of(path), gguf=header, **of_hub, **gguf_facts(header))


def gguf_facts(header: Header) -> dict[str, Any]:
    """The facts that the header of a GGUF file tells, as fields of ModelFiles. Raises as `require_known` does."""
    require_known(header)
    return {
        "config": config_of(header),
        "generation": generation_of(header),
        "weights": Weights(
            sum(header.by_type.values()),
            parameters(header),
            header.by_type,
            packed_bytes(header, DTYPE_BYTES["bfloat16"]),
            packed_types(header),
            block_bytes(header, DTYPE_BYTES["bfloat16"]),
        ),
        "license": header.metadata.get("general.license"),
    }


def read_folder(ref: ModelRef, folder: Path) -> ModelFiles:
    """Read what is there; a snapshot may lack its weights, a user's folder any of them."""
    config, generation = read_config(folder), folder / GENERATION
    names = weight_files(folder)
    is_whole = all((folder / name).is_file() for name in names)
    weights = read_weights(folder, is_composite=is_composite(config)) if is_whole or ref.path else None
    if weights is None and names and is_whole:  # pickles
        weights = Weights(sum((folder / name).stat().st_size for name in names))
    alias = aliases().get(ref.alias or "")
    return ModelFiles(
        ref=ref,
        folder=folder,
        config=config,
        layers=count_layers(tensor_names(folder)) if weights and not is_composite(config) else None,
        fault=_fault(folder, str(folder) if ref.path else describe(ref)) if weights else None,
        generation=read_object(generation) if generation.is_file() else {"eos_token_id": _end_ids(config)},
        weights=weights,
        repo=ref.repo,
        revision=folder.name if ref.repo else None,
        license=read_card(folder)[0] or (alias.licence if alias else None),
        base_model=base_model(folder),
    )


def _fault(folder: Path, model: str) -> ModelError | None:
    """The reason why no tokenizer can be read from a folder that has its weights."""
    try:
        require_tokenizer(names := [path.name for path in folder.iterdir()], model=model)
        if set(TOKENIZER_FILES).intersection(names) == {_TOKENIZER_SETTINGS}:
            kind = read_object(folder / _TOKENIZER_SETTINGS).get("tokenizer_class")
            if not str(kind).startswith(_WITHOUT_VOCABULARY):
                return BrokenModel(
                    f"{model} has no tokenizer (tokenizer.json); copy it from the model it was made from"
                )
        held = [name for name in ("tokenizer.json", _TOKENIZER_SETTINGS) if (folder / name).is_file()]
        for name in held:
            require_whole_object(folder / name)
    except ModelError as error:
        return error
    return None


def _end_ids(config: Mapping[str, Any]) -> Any:
    """The ids that end an answer where no generation_config.json names them."""
    text = config.get("text_config")
    places = (config, text) if isinstance(text, Mapping) else (config,)
    return next((ids for place in places if (ids := place.get("eos_token_id")) is not None), None)
