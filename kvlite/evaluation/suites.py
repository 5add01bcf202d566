"""The suites by name, and the items or texts they are made of for one model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvlite.errors import UsageError
from kvlite.evaluation import material
from kvlite.evaluation.item import Item, Writer, own_prose
from kvlite.text.encoder import common_start

if TYPE_CHECKING:
    from kvlite.text.template import ChatText, Encoded

WRITERS: Mapping[str, Writer] = {
    "needles": material.write_needles,
    "dialogue": material.write_dialogue,
    "prompt": material.write_prompt,
    "lines": material.write_lines,
    "multikey": material.write_multikey,
    "tracking": material.write_tracking,
    "cloze": material.write_cloze,
}
FORCED = ("kl", "ppl")
SUITES = (*WRITERS, *FORCED)

_END_OF_DOCUMENT = "<|endoftext|>"
_TRIES = 20  # to write an item that has no more tokens than are wanted


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question in ids: `prompt` asks it, `answer` is the right answer, of which the value is what `start` leaves.

    What it asks for was told about `back` tokens before the end of the item.
    """

    prompt: Encoded
    answer: tuple[int, ...]
    start: int
    value: str
    kind: str
    back: int

    @property
    def ids(self) -> tuple[int, ...]:
        """The question and its right answer."""
        return self.prompt.ids + self.answer


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item in ids: `prefix` is fed once, and each question behind it on its own."""

    prefix: tuple[int, ...]
    questions: tuple[AskedQuestion, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the prefix with the longest question."""
        return len(self.prefix) + max((len(question.ids) for question in self.questions), default=0)


@dataclass(frozen=True, slots=True)
class ForcedText:
    """Ids to feed as they are; all but the first `unscored` are scored."""

    ids: tuple[int, ...]
    unscored: int = 1


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite to run: `count` items of at most `length` tokens. Raises UsageError on an unknown name.

    With `free` the model also answers in its own words, with at most `max_tokens` tokens.
    """

    name: str
    count: int
    length: int
    seed: int = 0
    free: bool = False
    max_tokens: int = 32

    def __post_init__(self) -> None:
        if self.name not in SUITES:
            raise UsageError(f"unknown suite {self.name!r}; choose from {', '.join(SUITES)}")

    @property
    def is_forced(self) -> bool:
        """True where all of a text is scored, false where questions are asked about it."""
        return self.name in FORCED

    @property
    def material(self) -> str:
        """The name of the material: suites that share it measure the same runs and report other figures."""
        return "text" if self.is_forced else self.name

    def items(self, text: ChatText, prose: str | None = None) -> list[EncodedItem]:
        """The items for a model, in `prose` or in kvlite's own."""
        prose = (prose or own_prose()).replace(_END_OF_DOCUMENT, "\n")
        sample = prose[:8000]
        size = int(self.length * len(sample) / max(1, len(text.raw(sample).ids)))
        return [self._item(text, prose, size, number) for number in range(self.count)]

    def _item(self, text: ChatText, prose: str, size: int, number: int) -> EncodedItem:
        """One item, written smaller until it fits `length`."""
        for _ in range(_TRIES):
            rng = random.Random(f"{self.seed}/{self.name}/{number}")
            found = encoded(text, WRITERS[self.name](rng, prose, size))
            if found.tokens <= self.length:
                break
            size = int(size * min(0.95, self.length / found.tokens))
        else:
            raise UsageError(f"{self.name} cannot be asked in {self.length} tokens; give a longer --length")
        return found

    def texts(self, text: ChatText, prose: str | None = None) -> list[ForcedText]:
        """Documents of `prose`, or of kvlite's own, in pieces of at most `length` tokens, at most `count` of them.

        Documents end at a line `<|endoftext|>`. Raises UsageError where there is nothing to score.
        """
        opening = text.raw("").ids
        unscored = max(1, len(opening))
        texts: list[ForcedText] = []
        for document in (prose or own_prose()).replace("\r\n", "\n").split(f"\n{_END_OF_DOCUMENT}\n"):
            ids = text.raw(document.strip()).ids[len(opening) :]
            step = max(2, self.length - len(opening))
            pieces = (opening + ids[start : start + step] for start in range(0, len(ids), step))
            texts += [ForcedText(piece, unscored) for piece in pieces if len(piece) > 1]
            if len(texts) >= self.count:
                return texts[: self.count]
        if not texts:
            raise UsageError("the text has no two tokens; give a longer one")
        return texts


def encoded(text: ChatText, item: Item) -> EncodedItem:
    """An item as `text` writes it: what all questions have in common is the prefix."""
    prefix, prompts = _prompts(text, item)
    questions = []
    for question, prompt in zip(item.questions, prompts, strict=True):
        answer, lead = text.written(question.lead + question.value), text.written(question.lead.rstrip())
        back = round((1 - question.where) * len(prefix))
        start = common_start(lead, answer)
        questions.append(AskedQuestion(prompt, answer, start, question.value, question.kind, back))
    return EncodedItem(prefix, tuple(questions))


def _prompts(text: ChatText, item: Item) -> tuple[tuple[int, ...], list[Encoded]]:
    """The ids that all questions have in front, and the prompt of each behind these."""
    first, *others = item.messages
    if not others:
        asked = [text.conversation([{"role": "user", "content": f"{first}\n\n{each.ask}"}]) for each in item.questions]
        alone = text.conversation([{"role": "user", "content": f"{first}\n\n"}]).ids
        shared = min((common_start(alone, prompt.ids) for prompt in asked), default=len(alone))
        return alone[:shared], [replace(prompt, ids=prompt.ids[shared:]) for prompt in asked]
    prefix = text.conversation([{"role": "user", "content": first}]).ids
    for message, answer in zip([*others[1::2], None], others[::2], strict=True):
        prefix += text.written(answer)
        if message is not None:
            prefix += text.next_turn(message, ended=True).ids
    return prefix, [text.next_turn(question.ask, ended=True) for question in item.questions]
