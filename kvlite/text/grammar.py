"""Grammars that an answer must follow: JSON, by a schema or not, a regular expression, or one of several texts.

llguidance reads them, a package of the extra `json`, which is imported once there is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

from kvlite.errors import MissingPackage, UsageError

_WHITE_SPACE = r" |\n[ \t]{0,32}"
"""White space in JSON: enough for every style of writing it, too little for a model to lose itself in."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's own words, found to be one; every answer ends where it does."""

    words: str

    def __str__(self) -> str:
        """The words, of long ones a hash."""
        return self.words if len(self.words) <= 80 else sha256(self.words.encode()).hexdigest()[:16]

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON by a JSON Schema. Raises UsageError where it is none, or has a feature that cannot be kept to."""
        return cls(_checked("json", schema if isinstance(schema, str) else json.dumps(schema)))

    @classmethod
    def of_any_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.of_schema({"type": "object"})

    @classmethod
    def of_regex(cls, regex: str) -> Grammar:
        """Text that a regular expression matches as a whole. Raises UsageError where it is none, or empty."""
        if not regex:
            raise UsageError("the expression is empty, and so would be the answer; give one that matches some text")
        return cls(_checked("regex", regex))

    @classmethod
    def of_choice(cls, texts: Sequence[str]) -> Grammar:
        """One of several texts. Raises UsageError where there are none, or one is empty."""
        if not texts:
            raise UsageError("there is nothing to choose from; give at least one text")
        if not all(texts):
            raise UsageError("a text to choose is empty; give some")
        return cls(_checked("choice", " | ".join(map(json.dumps, texts))))


@lru_cache(maxsize=256)  # most lines of a batch ask for one of a few
def _checked(kind: str, text: str) -> str:
    """The grammar in llguidance's words. Raises UsageError where it is none, MissingPackage without llguidance."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise MissingPackage('answers by a grammar need llguidance; `pip install "kvlite-llm[json]"`') from error
    try:
        if kind == "json":
            words = LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": _WHITE_SPACE})
        elif kind == "regex":
            words = LLMatcher.grammar_from_regex(text)
        else:
            words = LLMatcher.grammar_from_lark(f"start: {text}")
    except ValueError as error:
        raise UsageError(_one_line(str(error))) from error
    is_wrong, found = LLMatcher.validate_grammar_with_warnings(words)
    if is_wrong:
        raise UsageError(_one_line(found[0]))
    return str(words)


def _one_line(message: str) -> str:
    """The fault in words, without the pictures of its place."""
    lines = [line.strip() for line in message.splitlines()]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    first = re.sub(r"^at \d+\(\d+\): ", "", lines[0]) if lines else message
    return (named[0] if named else first).partition(" Enable 'coerce_one_of'")[0]  # an option of llguidance's own
