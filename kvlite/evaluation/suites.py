"""The suites by name, and the conversations or texts they are made of for one model."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain, cycle
from typing import TYPE_CHECKING

from kvlite.errors import UsageError
from kvlite.evaluation.conversation import Conversation
from kvlite.evaluation.recall import write_recall
from kvlite.evaluation.retrieval import write_lookup, write_needle, write_tracking
from kvlite.evaluation.vocabulary import Split

if TYPE_CHECKING:
    from kvlite.text.template import ChatText

Writer = Callable[[str, int, Split], Conversation]

WRITERS: Mapping[str, Writer] = {
    "recall": write_recall,
    "needle": write_needle,
    "tracking": write_tracking,
    "lookup": write_lookup,
}
FORCED = ("kl", "ppl")
SUITES = (*WRITERS, *FORCED)

_SAMPLE_TURNS = 24  # of a conversation that tells how many tokens a turn takes


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite to run: `count` conversations of at most `length` tokens as written, words from one side of `split`.

    `max_tokens` ends an answer. Sizes are at least 1. Raises UsageError on an unknown name.
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

    @property
    def is_forced(self) -> bool:
        """True where text is teacher-forced and scored, false where questions are asked."""
        return self.name in FORCED

    @property
    def material(self) -> str:
        """The name of the material: suites that share it measure the same runs and report other figures."""
        return "text" if self.is_forced else self.name

    def conversations(self, text: ChatText) -> list[Conversation]:
        """The conversations, each cut where `text` counts `length` tokens."""
        write = WRITERS.get(self.name, write_recall)
        sample = write(f"{self.seed}/length", _SAMPLE_TURNS, self.split)
        a_turn = max(1.0, sum(turn_tokens(text, sample)) / len(sample.turns))
        turns = max(1, int(self.length / a_turn))
        found = []
        for number in range(self.count):
            written = write(f"{self.seed}/{self.material}/{number}", turns, self.split)
            ends = list(accumulate(turn_tokens(text, written)))
            found.append(Conversation(written.turns[: max(1, bisect(ends, self.length))]))
        return found


@dataclass(frozen=True, slots=True)
class ForcedText:
    """Ids to feed as they are; `scored` marks those that the model would have had to write."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...]


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
    for document in filter(str.strip, content.replace("\r\n", "\n").split("\n<|endoftext|>\n")):
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


def _encoded(text: ChatText, conversation: Conversation) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """For each turn the ids that are fed before the answer, and the ids of the right answer."""
    first, *later = conversation.turns
    prompts = [text.conversation([{"role": "user", "content": first.user}])]
    prompts += [text.next_turn(turn.user, ended=True) for turn in later]
    return [(prompt.ids, text.written(turn.answer)) for prompt, turn in zip(prompts, conversation.turns, strict=True)]


def turn_tokens(text: ChatText, conversation: Conversation) -> list[int]:
    """Tokens of each turn with its right answer."""
    return [len(prompt) + len(answer) for prompt, answer in _encoded(text, conversation)]
