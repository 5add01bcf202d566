"""The suites by name, and the conversations or texts they are made of for one model."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, cycle
from typing import TYPE_CHECKING

from kvlite.errors import UsageError
from kvlite.evaluation.conversation import Conversation
from kvlite.evaluation.recall import write_recall
from kvlite.evaluation.retrieval import write_lookup, write_needle, write_tracking
from kvlite.evaluation.vocabulary import Split

if TYPE_CHECKING:
    from kvlite.text.template import ChatText, Encoded

Writer = Callable[[str, int, Split], Conversation]

WRITERS: Mapping[str, Writer] = {
    "recall": write_recall,
    "needle": write_needle,
    "tracking": write_tracking,
    "lookup": write_lookup,
}
FORCED = ("kl", "ppl")
SUITES = (*WRITERS, *FORCED)
END_OF_DOCUMENT = "<|endoftext|>"

_SAMPLE_TURNS = 24  # of a conversation that tells how many tokens a turn takes


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite to run: `count` conversations of at most `length` tokens as written, words from one side of `split`.

    `max_tokens` ends an answer. Raises UsageError on an unknown name or sizes below 1.
    """

    name: str
    count: int
    length: int
    seed: int = 0
    split: Split = "held-out"
    max_tokens: int = 32

    def __post_init__(self) -> None:
        if self.name not in SUITES:
            raise UsageError(f"unknown suite {self.name!r}; choose from {', '.join(SUITES)}")
        if min(self.count, self.length, self.max_tokens) < 1:
            raise UsageError("the number of conversations, their length and the answers' must be at least 1")

    @property
    def is_forced(self) -> bool:
        """True where text is teacher-forced and scored, false where questions are asked."""
        return self.name in FORCED

    @property
    def material(self) -> str:
        """The name of the material: suites that share it measure the same runs and report other figures."""
        return "text" if self.is_forced else self.name

    def key(self) -> dict[str, object]:
        """The settings that decide the content of conversation n, however many there are."""
        return {**{name: value for name, value in asdict(self).items() if name != "count"}, "name": self.material}

    def conversations(self, text: ChatText) -> list[Conversation]:
        """The conversations, each cut where `text` counts `length` tokens."""
        write = WRITERS.get(self.name, write_recall)
        sample = write(f"{self.seed}/length", _SAMPLE_TURNS, self.split)
        a_turn = max(1.0, sum(_sizes(text, sample)) / len(sample.turns))
        turns = max(1, int(self.length / a_turn))
        written = (write(f"{self.seed}/{self.material}/{number}", turns, self.split) for number in range(self.count))
        return [each.first(max(1, bisect(list(accumulate(_sizes(text, each))), self.length))) for each in written]


@dataclass(frozen=True, slots=True)
class ForcedText:
    """Ids to feed as they are; `scored` marks those that the model would have had to write."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...]

    def key(self) -> str:
        """A checksum of both."""
        return hashlib.sha256(json.dumps([self.ids, self.scored]).encode()).hexdigest()[:16]


def dialogue_texts(suite: Suite, text: ChatText) -> list[ForcedText]:
    """Recall dialogues with their right answers, of which the answers are scored."""
    texts = []
    for conversation in suite.conversations(text):
        parts = [part for turn in _encoded(text, conversation) for part in turn]
        scored = (is_answer for part, is_answer in zip(parts, cycle((False, True))) for _ in part)
        texts.append(ForcedText(tuple(chain.from_iterable(parts)), tuple(scored)))
    return texts


def file_texts(suite: Suite, text: ChatText, content: str) -> list[ForcedText]:
    """The documents of `content`, cut into pieces of at most `length` tokens, at most `count` of them, all scored.

    Documents end at a line `<|endoftext|>`. Raises UsageError where there is nothing to score.
    """
    opening = text.raw("").ids
    unscored = max(1, len(opening))
    texts: list[ForcedText] = []
    for document in filter(str.strip, content.replace("\r\n", "\n").split(f"\n{END_OF_DOCUMENT}\n")):
        ids = text.raw(document.strip()).ids[len(opening) :]
        step = max(2, suite.length - len(opening))
        pieces = (opening + ids[start : start + step] for start in range(0, len(ids), step))
        scored = (False,) * unscored + (True,) * step
        texts += [ForcedText(piece, scored[: len(piece)]) for piece in pieces if len(piece) > 1]
        if len(texts) >= suite.count:
            return texts[: suite.count]
    if not texts:
        raise UsageError("the text has no two tokens; give a longer one")
    return texts


def written_tokens(text: ChatText, conversation: Conversation) -> int:
    """Tokens of a conversation with its right answers."""
    return sum(_sizes(text, conversation))


def opening(text: ChatText, conversation: Conversation) -> Encoded:
    """The first message as the template writes it."""
    return text.conversation([{"role": "user", "content": conversation.turns[0].user}])


def _encoded(text: ChatText, conversation: Conversation) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """For each turn the ids that are fed before the answer, and the ids of the right answer."""
    later = (text.next_turn(turn.user, ended=True) for turn in conversation.turns[1:])
    prompts = (opening(text, conversation), *later)
    return [(prompt.ids, text.written(turn.answer)) for prompt, turn in zip(prompts, conversation.turns, strict=True)]


def _sizes(text: ChatText, conversation: Conversation) -> list[int]:
    return [len(prompt) + len(answer) for prompt, answer in _encoded(text, conversation)]
