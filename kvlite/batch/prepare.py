"""Turn items into requests of the engine: settings merged, and refused where this run cannot honour them.

A line's own value wins over a flag, a flag over the model's generation_config.json, that over the built-in default.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from kvlite.batch.item import Code, Failure, Item, failure_of
from kvlite.batch.values import shown
from kvlite.catalog.names import resolve_model
from kvlite.engine.request import Request, Sampling
from kvlite.errors import KvliteError
from kvlite.llm.answer import BATCH_MAX_TOKENS, DRAWN_SEEDS, Answer, AnswerSettings
from kvlite.options import AnswerOptions, BatchOptions

if TYPE_CHECKING:
    from kvlite.batch.model import Model
    from kvlite.text.stream import AnswerText
    from kvlite.text.template import ChatText, Encoded


@dataclass(slots=True)
class Work:
    """An item with its requests, one per choice, and how far they are.

    `stop` are the user's stop strings. `attempt` counts the tries, `retries` those of the item alone.
    """

    item: Item
    encoded: Encoded
    requests: tuple[Request, ...]
    stop: tuple[str, ...]
    dedupe_key: bytes | None = None
    attempt: int = 1
    retries: int = 0
    choices: dict[str, Answer] = field(default_factory=dict)
    failure: Failure | None = None


class Preparer:
    """Preparation of items for one model; lines that name another than `required` are refused, None accepts them all.

    `generation` is the model's generation_config.json, `options` are the flags. Without a seed each line has its own,
    from its id. No answer is longer than `most_tokens`, the model's window.
    """

    def __init__(
        self,
        text: ChatText,
        options: AnswerOptions,
        generation: Mapping[str, Any] | None = None,
        *,
        pin_system: bool = True,
        required: str | None = None,
        most_tokens: int | None = None,
        ignores_unsupported: bool = False,
        out_format: str | None = None,
    ) -> None:
        self._ignores_unsupported = ignores_unsupported
        self._out_format = out_format
        self._most_tokens = most_tokens or sys.maxsize
        self._text = text
        self._options = options
        self._required = required
        self._settings = AnswerSettings.of(
            generation or {}, options, max_tokens=BATCH_MAX_TOKENS, pin_system=pin_system
        )

    @classmethod
    def of(
        cls, model: Model, text: ChatText, window: int | None, answer: AnswerOptions, options: BatchOptions
    ) -> Preparer:
        """The preparation that the options of a batch ask for; `window` counts the positions of the model."""
        return cls(
            text,
            answer,
            text.generation,
            pin_system=model.spec.options.pin_system,
            required=model.required,
            most_tokens=window,
            ignores_unsupported=options.ignore_unsupported,
            out_format=options.out_format,
        )

    def prepare(self, item: Item) -> Work | Failure:
        """Make the requests of an item; a failure where they cannot be honoured or rendered."""
        if item.failure is not None:
            return item.failure
        named = item.model
        if self._required is not None and named is not None and not _is_same_model(self._required, named):
            message = f"the line asks for the model {shown(named)}, this run is for {shown(self._required)}"
            return Failure(Code.MODEL_MISMATCH, f"{message}; run one model at a time, or give -m", "model")
        if item.unsupported and not self._ignores_unsupported:
            name = item.unsupported[0]
            message = f"{name} is not supported; leave it out, or give --ignore-unsupported to answer without it"
            return Failure(Code.INVALID, message, name)
        if (lost := self._unplaced(item)) is not None:
            message = f"--out-format {self._out_format} has no place for {lost}; leave it out, or give another format"
            return Failure(Code.INVALID, message, lost)
        settings = self._settings
        try:
            encoded = self._encode(item)
            most = min(item.max_tokens or settings.max_tokens or self._most_tokens, self._most_tokens)
            own = {"min_tokens": min(settings.min_tokens, most), **item.settings}
            settings = replace(settings, sampling=self.sampling(item), max_tokens=most, **own)
            requests = tuple(
                settings.request(f"{item.index}.{choice}", encoded, self._text, row=None, number=choice)
                for choice in range(item.n)
            )
        except Exception as error:  # no line ends a batch
            return failure_of(error)
        return Work(item, encoded, requests, settings.stop if item.stop is None else item.stop)

    def _unplaced(self, item: Item) -> str | None:
        """The name of what the line asks for and no record would hold."""
        if self._out_format in ("simple", "text") and item.n > 1:
            return "n"
        return "logprobs" if self._out_format == "text" and item.settings.get("logprobs") is not None else None

    def answer(self, work: Work) -> AnswerText:
        """Make the reader of one answer."""
        return self._text.answer(work.encoded, work.stop, work.requests[0].rules.min_new_tokens)

    def sampling(self, item: Item) -> Sampling:
        """Merge the sampling of an item's first choice; each further choice adds 1 to the seed."""
        seed = self._options.seed
        if seed is None:
            seed = int.from_bytes(blake2b(item.key.encode(), digest_size=8).digest(), "big") % DRAWN_SEEDS
        return replace(self._settings.sampling, **{"seed": seed, **item.sampling})

    def dedupe_key(self, item: Item) -> bytes | None:
        """Hash all that decides a greedy answer: equal keys have equal answers. None where sampling is random."""
        if not self.sampling(item).is_greedy:
            return None
        return asked_of(item)

    def _encode(self, item: Item) -> Encoded:
        system = self._options.system
        if item.prompt is not None and item.raw:
            return self._text.raw(item.prompt)
        if item.prompt is not None and not item.template_kwargs and not item.continues:
            return self._text.prompt(item.prompt, system=system)
        messages = item.messages or ({"role": "user", "content": item.prompt},)
        if system and messages[0]["role"] != "system":
            messages = ({"role": "system", "content": system}, *messages)
        return self._text.conversation(messages, template_kwargs=item.template_kwargs, continues=item.continues)


def asked_of(item: Item) -> bytes:
    """Hash all that a line asks for but the seed: under the same flags, equal hashes are one greedy request."""
    sampling = {name: value for name, value in item.sampling.items() if name != "seed"}
    asked = (item.prompt, item.messages, item.raw, item.continues, sampling, item.max_tokens, item.stop, item.n)
    more = (item.settings, item.template_kwargs)
    return blake2b(repr((*asked, *more)).encode(), digest_size=16).digest()


@lru_cache(maxsize=64)
def _is_same_model(one: str, other: str) -> bool:
    """True where two names mean one model, such as an alias and its repository."""
    try:
        return one == other or resolve_model(one) == resolve_model(other)
    except KvliteError:
        return False
