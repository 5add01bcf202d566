"""Turn items into requests of the engine: settings merged, and refused where this run cannot honour them.

A line's own value wins over a flag, a flag over the model's generation_config.json, that over the built-in default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from kvlite.batch.item import BadLine, Code, Entry, Failure, Item
from kvlite.batch.values import shown
from kvlite.catalog.names import resolve_model
from kvlite.engine.request import Request, Sampling
from kvlite.errors import KvliteError, UsageError
from kvlite.llm.answer import BATCH_MAX_TOKENS, DRAWN_SEEDS, SEEDS

if TYPE_CHECKING:
    from kvlite.text.stream import AnswerText
    from kvlite.text.template import ChatText, Encoded


@dataclass(frozen=True, slots=True)
class Defaults:
    """Settings for lines that give none; `seed` None gives every line its own, made from its id.

    `sampling` are fields of Sampling.
    """

    sampling: Mapping[str, int | float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int = BATCH_MAX_TOKENS
    stop: tuple[str, ...] = ()
    system: str | None = None
    pin_system: bool = True


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item ready to run: one request per choice; `stop` are the user's stop strings."""

    item: Item
    encoded: Encoded
    requests: tuple[Request, ...]
    stop: tuple[str, ...]


class Preparer:
    """Preparation of items for one model; lines that name another than `model` are refused, None accepts them all."""

    def __init__(self, text: ChatText, defaults: Defaults, model: str | None = None) -> None:
        self._text = text
        self._defaults = defaults
        self._model = model

    def prepare(self, entry: Entry) -> Prepared | Failure:
        """Make the requests of an item; a failure where they cannot be honoured or rendered."""
        if isinstance(entry, BadLine):
            return entry.failure
        named = entry.model
        if self._model is not None and named is not None and not _is_same_model(self._model, named):
            message = f"the line asks for the model {shown(named)}, this run is for {shown(self._model)}"
            return Failure(Code.MODEL_MISMATCH, f"{message}; run one model at a time, or give -m", "model")
        try:
            sampling = self.sampling(entry)
            encoded = self._encode(entry)
            requests = tuple(self._request(entry, encoded, sampling, choice) for choice in range(entry.n))
        except UsageError as error:
            return Failure(Code.INVALID, str(error))
        return Prepared(entry, encoded, requests, self._defaults.stop if entry.stop is None else entry.stop)

    def answer(self, prepared: Prepared) -> AnswerText:
        """Make the reader of one answer."""
        return self._text.answer(prepared.encoded, prepared.stop)

    def sampling(self, item: Item) -> Sampling:
        """Merge the sampling of an item's first choice; each further choice adds 1 to the seed."""
        seed = self._defaults.seed
        if seed is None:
            seed = int.from_bytes(blake2b(item.key.encode(), digest_size=8).digest(), "big") % DRAWN_SEEDS
        return Sampling(**{**self._defaults.sampling, "seed": seed, **item.sampling})  # type: ignore[arg-type]

    def dedupe_key(self, item: Item) -> bytes | None:
        """Hash all that decides a greedy answer: equal keys have equal answers. None where sampling is random."""
        if not self.sampling(item).is_greedy:
            return None
        sampling = {name: value for name, value in item.sampling.items() if name != "seed"}
        asked = (item.prompt, item.messages, item.raw, sampling, item.max_tokens, item.stop, item.n)
        return blake2b(repr((*asked, item.template_kwargs)).encode(), digest_size=16).digest()

    def _encode(self, item: Item) -> Encoded:
        system = self._defaults.system
        if item.prompt is not None and item.raw:
            return self._text.raw(item.prompt)
        if item.prompt is not None and not item.template_kwargs:
            return self._text.prompt(item.prompt, system=system)
        messages = item.messages or ({"role": "user", "content": item.prompt},)
        if system is not None and messages[0]["role"] != "system":
            messages = ({"role": "system", "content": system}, *messages)
        return self._text.conversation(messages, template_kwargs=item.template_kwargs)

    def _request(self, item: Item, encoded: Encoded, sampling: Sampling, choice: int) -> Request:
        return Request(
            id=f"{item.place.index}.{choice}",
            ids=encoded.ids,
            sampling=replace(sampling, seed=(sampling.seed + choice) % SEEDS),
            max_tokens=self._defaults.max_tokens if item.max_tokens is None else item.max_tokens,
            stop_ids=self._text.stop_ids,
            pins=encoded.pins if self._defaults.pin_system else (),
        )


@lru_cache(maxsize=64)
def _is_same_model(one: str, other: str) -> bool:
    """True where two names mean one model, such as an alias and its repository."""
    try:
        return one == other or resolve_model(one) == resolve_model(other)
    except KvliteError:
        return False
