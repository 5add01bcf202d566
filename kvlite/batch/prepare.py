"""Turn items into requests of the engine: settings merged, and refused where this run cannot honour them.

A line's own value wins over a flag, a flag over the model's generation_config.json, that over the built-in default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from kvlite.batch.item import Code, Item, LineError
from kvlite.batch.values import shown
from kvlite.cache.policy import load_policy
from kvlite.catalog.names import resolve_model
from kvlite.engine.request import Request, Sampling
from kvlite.errors import KvliteError, UsageError
from kvlite.llm.answer import BATCH_MAX_TOKENS, SEEDS
from kvlite.memory.budget import Budget

if TYPE_CHECKING:
    from kvlite.text.stream import AnswerText
    from kvlite.text.template import ChatText, Encoded

_SEEDS = 2**31  # small enough to be exact in every reader of JSON


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
class Terms:
    """Settings of the run that no line can change; `model` None accepts every name a line gives."""

    model: str | None = None
    kv_budgets: tuple[str, ...] = ()
    kv_policy: str = ""
    on_full: str = "evict"

    def check(self, item: Item) -> None:
        """Raise LineError where the line asks for something else than this run has."""
        named = item.model
        if self.model is not None and named is not None and not _is_same_model(self.model, named):
            message = f"the line asks for the model {shown(item.model)}, this run is for {shown(self.model)}"
            raise LineError(f"{message}; run one model at a time, or give -m", "model", Code.MODEL_MISMATCH)
        allowed = {"kv_budget": self.kv_budgets, "kv_policy": (self.kv_policy,), "on_full": (self.on_full,)}
        for name, asked in item.extras.items():
            if _AS_THE_RUN_HAS_IT.get(name, str)(asked) not in allowed[name]:
                flag = name.replace("_", "-")
                runs = " or ".join(allowed[name])
                message = f"kvlite.{name} is {shown(asked)}, this run has {runs}; run these lines with --{flag}"
                raise LineError(message, f"kvlite.{name}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item ready to run: one request per choice; `stop` are the user's stop strings."""

    item: Item
    encoded: Encoded
    requests: tuple[Request, ...]
    stop: tuple[str, ...]


class Preparer:
    """Preparation of items for one model."""

    def __init__(self, text: ChatText, defaults: Defaults, terms: Terms) -> None:
        self._text = text
        self._defaults = defaults
        self._terms = terms

    def prepare(self, item: Item) -> Prepared:
        """Make the requests of an item. Raises LineError where they cannot be honoured or rendered."""
        self._terms.check(item)
        try:
            sampling = self.sampling(item)
            encoded = self._encode(item)
            requests = tuple(self._request(item, encoded, sampling, choice) for choice in range(item.n))
        except UsageError as error:
            raise LineError(str(error)) from None
        stop = self._defaults.stop if item.stop is None else item.stop
        return Prepared(item, encoded, requests, stop)

    def answer(self, prepared: Prepared) -> AnswerText:
        """Make the reader of one answer."""
        return self._text.answer(prepared.encoded, prepared.stop)

    def sampling(self, item: Item) -> Sampling:
        """Merge the sampling of an item's first choice; each further choice adds 1 to the seed."""
        given = {**self._defaults.sampling, **item.sampling}
        if "seed" not in item.sampling:
            given["seed"] = _seed_of(item.key) if self._defaults.seed is None else self._defaults.seed
        return Sampling(**given)  # type: ignore[arg-type]

    def dedupe_key(self, item: Item) -> bytes | None:
        """Hash all that decides a greedy answer: equal keys have equal answers. None where sampling is random."""
        if not self.sampling(item).is_greedy:
            return None
        seedless = {name: value for name, value in item.sampling.items() if name != "seed"}
        asked = (
            item.prompt,
            item.messages,
            item.raw,
            seedless,
            item.max_tokens,
            item.stop,
            item.n,
            item.template_kwargs,
        )
        return blake2b(repr(asked).encode(), digest_size=16).digest()

    def _encode(self, item: Item) -> Encoded:
        defaults = self._defaults
        if item.raw:
            assert item.prompt is not None
            return self._text.raw(item.prompt)
        if item.messages is None and not item.template_kwargs:
            assert item.prompt is not None
            return self._text.prompt(item.prompt, system=defaults.system)
        messages = item.messages or ({"role": "user", "content": item.prompt},)
        if defaults.system is not None and messages[0]["role"] != "system":
            messages = ({"role": "system", "content": defaults.system}, *messages)
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


def _budget(written: str) -> str:
    try:
        return str(Budget.parse(written))
    except KvliteError as error:
        raise LineError(str(error), "kvlite.kv_budget") from None


@lru_cache(maxsize=64)
def _policy(written: str) -> str:
    try:
        return str(load_policy(written))
    except UsageError:  # no policy, so none that this run has
        return written


_AS_THE_RUN_HAS_IT: Mapping[str, Callable[[str], str]] = {"kv_budget": _budget, "kv_policy": _policy}
"""Readers that write a line's value as the run's own is written, for comparison."""


def _seed_of(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % _SEEDS
