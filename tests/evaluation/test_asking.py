"""Conversations as they are held: own answers stay, only what is new is fed, distances are those of what was fed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from transformers import AutoTokenizer

from kvlite.catalog.names import demo_folder
from kvlite.engine.request import Completion, FinishReason, Request, Timing, Token
from kvlite.errors import ContextFull, KvliteError, NumericError
from kvlite.evaluation.asking import converse
from kvlite.evaluation.conversation import Conversation, Probe, Turn
from kvlite.evaluation.journal import Answered
from kvlite.memory.counts import KVCounts
from kvlite.text.template import ChatText

COUNTS = KVCounts(0, 0, 0, 0, 0, 0, 0, "full", "float32")
TALK = Conversation(
    (
        Turn("My cat is Milo.", "I see."),
        Turn("It is raining.", "Yes."),
        Turn("What is my cat called?", "Milo.", Probe(("Milo",), 0, "name")),
        Turn("Say it again.", "Milo.", Probe(("Milo",), 0, "name")),
    )
)


@pytest.fixture(scope="module")
def text() -> ChatText:
    return ChatText(AutoTokenizer.from_pretrained(demo_folder()))


@dataclass
class Scripted:
    """Answers each request as the script says, by its name, and remembers what it was fed."""

    text: ChatText
    script: Mapping[str, str | KvliteError | tuple[str, FinishReason]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    resets: list[int] = field(default_factory=list)

    def reset(self, row: int) -> None:
        self.resets.append(row)

    def cancel(self, request_id: str, reason: FinishReason) -> None:
        raise AssertionError("nothing to cancel")

    def run(self, requests: Iterable[Request]) -> Iterator[Token | Completion]:
        asked = list(requests)
        self.requests += asked
        for request in asked:
            says = self.script.get(request.id, "I see.")
            error = says if isinstance(says, KvliteError) else None
            said, reason = says if isinstance(says, tuple) else (says, FinishReason.STOP)
            ids = () if error else tuple(self.text.tokenizer.encode(said))
            for index, token in enumerate(ids):
                yield Token(request.id, index, token)
            yield Completion(request.id, ids, reason, len(request.ids), 0, COUNTS, Timing(0, 0, 0), error)


def held(engine: Scripted, *conversations: Conversation, max_tokens: int = 32) -> tuple[list[Answered], list[float]]:
    done: list[float] = []
    numbered = list(enumerate(conversations))
    return converse(engine, engine.text, numbered, max_tokens, done.append), done  # type: ignore[arg-type]


def test_an_answer_is_right_where_it_holds_the_value(text: ChatText) -> None:
    ((answered,), _) = held(Scripted(text, {"0/2": "Your cat is called MILO!", "0/3": "Rex."}), TALK)
    assert [outcome.right for outcome in answered.outcomes] == [True, False]
    assert [outcome.answer for outcome in answered.outcomes] == ["Your cat is called MILO!", "Rex."]


def test_distances_count_what_was_fed_with_the_models_own_answers(text: ChatText) -> None:
    short, long = "Yes.", "That is a very long answer about the rain and the wind."
    found = []
    for says in (short, long):
        ((answered,), _) = held(Scripted(text, {"0/2": says}), TALK)
        found.append(answered.outcomes)
    tokens = [len(text.tokenizer.encode(says)) for says in (short, long)]
    assert found[0][0].tokens == found[1][0].tokens > 0
    assert found[1][1].tokens - found[0][1].tokens == tokens[1] - tokens[0] > 0
    assert [[outcome.turns for outcome in outcomes] for outcomes in found] == [[2, 3], [2, 3]]


def test_what_asks_for_nothing_is_fed_with_its_written_answer_in_one_piece_with_the_next_question(
    text: ChatText,
) -> None:
    engine = Scripted(text)
    held(engine, TALK)
    fed = [text.tokenizer.decode(request.ids) for request in engine.requests]
    messages = [message for turn in TALK.turns[:2] for message in (("user", turn.user), ("assistant", turn.answer))]
    messages.append(("user", TALK.turns[2].user))
    conversation = [{"role": role, "content": content} for role, content in messages]
    assert fed[0] == text.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert len(fed) == 2


def test_only_what_is_new_is_fed_and_all_of_it_is_counted(text: ChatText) -> None:
    engine = Scripted(text)
    ((answered,), _) = held(engine, TALK)
    fed = [text.tokenizer.decode(request.ids) for request in engine.requests]
    assert [[turn.user in part for part in fed] for turn in TALK.turns] == [[True, False]] * 3 + [[False, True]]
    answers = 2 * len(text.tokenizer.encode("I see."))
    assert answered.tokens == sum(len(request.ids) for request in engine.requests) + answers


def test_an_answer_cut_at_its_most_tokens_is_closed_before_the_next_turn(text: ChatText) -> None:
    said = tuple(text.tokenizer.encode("I see."))
    engine = Scripted(text, {"0/2": ("I see.", FinishReason.LENGTH)})
    held(engine, TALK, max_tokens=len(said))
    assert len(engine.requests) == 2
    assert engine.requests[1].ids[0] in text.stop_ids
    assert {request.max_tokens for request in engine.requests} == {len(said)}


@pytest.mark.parametrize("end", [ContextFull("full"), ("I", FinishReason.LENGTH)], ids=["full", "cut short"])
def test_where_the_window_ends_so_does_the_conversation_and_its_questions_are_unreached(
    text: ChatText, end: KvliteError | tuple[str, FinishReason]
) -> None:
    engine = Scripted(text, {"0/3": end, "0/2": "Milo."})
    ((answered, other), _) = held(engine, TALK, TALK)
    assert (len(answered.outcomes), answered.unreached) == (1, 1)
    assert (len(other.outcomes), other.unreached) == (2, 0)


def test_a_failure_that_is_no_full_window_is_raised(text: ChatText) -> None:
    with pytest.raises(NumericError):
        held(Scripted(text, {"0/2": NumericError("no numbers")}), TALK)


def test_each_conversation_has_a_row_that_was_reset_and_shorter_ones_just_end(text: ChatText) -> None:
    engine = Scripted(text)
    (answers, done) = held(engine, TALK, Conversation(TALK.turns[:3]), Conversation(TALK.turns[:2]))
    assert engine.resets == [0, 1, 2]
    assert {request.id: request.row for request in engine.requests} == {"0/2": 0, "0/3": 0, "1/2": 1}
    assert [answered.number for answered in answers] == [0, 1, 2]
    assert [len(answered.outcomes) for answered in answers] == [2, 1, 0]
    assert done == [1.5, 3.0]
