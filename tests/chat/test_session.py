import pytest

from kvlite.chat.session import Session, goes_round
from kvlite.engine.request import FinishReason, Sampling
from kvlite.errors import BudgetTooSmall, ContextFull, UsageError
from kvlite.llm.answer import Answer, AnswerSettings
from kvlite.llm.conversation import MAX_CHECKPOINTS
from tests.chat.messages import message

END = "\0"


def ask(session, question):
    return told(session.ask(question))


def told(events):
    """The text streamed and the Answer at the end."""
    *pieces, answer = events
    assert isinstance(answer, Answer)
    return "".join(piece.text for piece in pieces if not piece.thinking), answer


@pytest.fixture
def session(engine, text):
    return Session(engine, text, AnswerSettings())


def test_first_turn_feeds_the_conversation_and_later_turns_only_their_suffix(engine, text):
    session = Session(engine, text, AnswerSettings(), system="be brief")
    engine.script += ["hello", "fine"]
    ask(session, "hi")
    assert engine.fed_text == "s:be brief|u:hi|a:hello"
    assert engine.requests[0].pins == ((0, 11),)
    said, answer = ask(session, "how are you")
    assert said == "fine" and answer.text == "fine"
    assert engine.fed_text == f"s:be brief|u:hi|a:hello{END}|u:how are you|a:fine"


def test_pins_are_left_out_when_the_system_prompt_is_not_pinned(engine, text):
    session = Session(engine, text, AnswerSettings(pin_system=False), system="be brief")
    ask(session, "hi")
    assert engine.requests[0].pins == ()


def test_a_system_prompt_that_does_not_fit_is_refused_and_changes_nothing(engine, text):
    engine.slots = 20
    session = Session(engine, text, AnswerSettings(), system="be brief")
    ask(session, "hi")
    before = [*session.messages]
    with pytest.raises(BudgetTooSmall):
        session.set_system("be " + "very " * 10 + "brief")
    assert session.messages == before
    with pytest.raises(BudgetTooSmall):
        Session(engine, text, AnswerSettings(), system="x" * 30)
    assert Session(engine, text, AnswerSettings(pin_system=False), system="x" * 30).system == "x" * 30


def test_nothing_can_be_taken_back_before_the_first_turn(session):
    for way_back in (session.undo, session.retry):
        with pytest.raises(UsageError, match="no turn yet"):
            way_back()


def test_a_cancelled_answer_stays_in_the_conversation_with_its_partial_text(engine, session):
    engine.script += ["a long answer", "next"]
    for event in session.ask("hi"):
        if isinstance(event, Answer):
            assert event.finish_reason is FinishReason.CANCELLED
        elif event.text == "l":
            session.cancel()
    assert session.messages[-1] == message("assistant", "a l", "cancelled")
    ask(session, "go on")
    assert engine.fed_text == "u:hi|a:a l|u:go on|a:next"  # no end-of-turn id that the model never gave


def test_cancelling_before_any_text_takes_the_question_back(engine, session):
    ask(session, "first")
    before = engine.fed_text
    engine.script.append("never seen")
    engine.cancel("turn-2")
    answer = list(session.ask("second"))[-1]
    assert answer.text == ""
    assert session.unsent == "second" and session.num_turns == 1 and engine.fed_text == before


def test_an_answer_cut_by_max_tokens_does_not_end_the_turn(engine, text):
    session = Session(engine, text, AnswerSettings(max_tokens=2))
    engine.script.append("long")
    _, answer = ask(session, "hi")
    assert answer.finish_reason is FinishReason.LENGTH
    ask(session, "go on")
    assert engine.fed_text.startswith("u:hi|a:lo|u:go on")


def test_a_stop_string_ends_the_answer_but_not_the_models_turn(engine, text):
    session = Session(engine, text, AnswerSettings(stop=("END",)))
    engine.script.append("yes END no")
    said, answer = ask(session, "hi")
    assert said == answer.text == "yes " and answer.finish_reason is FinishReason.STOP
    ask(session, "next")
    assert END not in engine.fed_text


def test_thinking_that_was_cut_off_is_closed_in_the_next_turn(engine, text):
    session = Session(engine, text, AnswerSettings(max_tokens=3))
    engine.script.append("<hmm>yes")
    ask(session, "hi")
    ask(session, "go on")
    assert engine.fed_text.startswith("u:hi|a:<hm>|u:go on")


def test_thinking_is_streamed_but_no_part_of_the_message(engine, session):
    engine.script.append("<hm>yes")
    said, answer = ask(session, "hi")
    assert said == "yes" and answer.thinking == "hm" and session.messages[-1]["content"] == "yes"


def test_retry_goes_back_to_the_turns_start_and_takes_the_next_seed(engine, text):
    session = Session(engine, text, AnswerSettings(sampling=Sampling(temperature=1.0, seed=7)))
    ask(session, "hi")
    before = engine.fed_text
    engine.script += ["one", "two"]
    ask(session, "well")
    said, _ = told(session.retry())
    assert said == "two" and engine.num_restored == 1
    assert engine.fed_text == f"{before}{END}|u:well|a:two"
    assert [request.sampling.seed for request in engine.requests] == [7, 8, 9]
    assert [message["content"] for message in session.messages] == ["hi", "ok", "well", "two"]


def test_undo_restores_the_latest_snapshots_and_feeds_older_turns_anew(engine, session):
    turns = MAX_CHECKPOINTS + 3
    for n in range(turns):
        ask(session, f"q{n}")
    assert session.undo() == f"q{turns - 1}" and engine.num_restored == 1
    assert session.undo(turns - 2) == "q1" and engine.num_restored == 1
    assert engine.fed_text == ""
    ask(session, "again")
    assert engine.fed_text == "u:q0|a:ok|u:again|a:ok"  # as the fake renders a whole conversation


def test_the_most_that_checkpoints_took_is_known(session):
    for question in "abc":
        ask(session, question)
    session.undo(2)
    assert session.checkpoint_peak_bytes == 200


def test_the_seed_after_the_last_is_the_first(engine, text):
    session = Session(engine, text, AnswerSettings(sampling=Sampling(temperature=1.0, seed=2**63 - 1)))
    ask(session, "a")
    ask(session, "b")
    told(session.retry())
    assert [request.sampling.seed for request in engine.requests] == [2**63 - 1, 0, 1]


def test_undo_and_ask_equals_never_having_asked(engine, session):
    ask(session, "a")
    ask(session, "b")
    session.undo()
    ask(session, "c")
    assert engine.fed_text == f"u:a|a:ok{END}|u:c|a:ok"


@pytest.mark.parametrize("turns", [0, 2, -1])
def test_undo_refuses_turns_that_are_not_there(session, turns):
    ask(session, "a")
    with pytest.raises(UsageError, match="has 1"):
        session.undo(turns)


@pytest.mark.parametrize(("limit", "value"), [("MAX_CHECKPOINT_BYTES", 50), ("available_bytes", lambda: 500)])
def test_a_row_too_large_for_the_host_is_fed_anew_instead_of_kept(engine, text, monkeypatch, limit, value):
    monkeypatch.setattr(f"kvlite.chat.session.{limit}", value)
    session = Session(engine, text, AnswerSettings())
    ask(session, "a")
    ask(session, "b")
    session.undo()
    assert engine.num_restored == 0 and engine.fed_text == ""
    ask(session, "c")
    assert engine.fed_text == "u:a|a:ok|u:c|a:ok"


def test_an_error_leaves_the_conversation_as_it_was_and_keeps_the_question(engine, session):
    ask(session, "a")
    before = engine.fed_text
    engine.script.append(ContextFull("no slot left"))
    with pytest.raises(ContextFull):
        list(session.ask("b"))
    assert session.unsent == "b" and engine.fed_text == before and session.num_turns == 1
    said, _ = told(session.retry())
    assert said == "ok" and session.messages[-2]["content"] == "b"


def test_an_error_in_the_first_turn_leaves_an_empty_row(engine, text):
    session = Session(engine, text, AnswerSettings(), system="s")
    engine.script.append(ContextFull("no slot left"))
    with pytest.raises(ContextFull):
        list(session.ask("a"))
    assert engine.fed_text == "" and session.system == "s" and session.num_turns == 0


def test_an_abandoned_answer_is_taken_back(engine, session):
    engine.script.append("abandoned")
    events = session.ask("a")
    next(events)
    events.close()
    assert engine.fed_text == "" and session.messages == []


def test_clear_keeps_the_system_prompt_and_system_starts_over(engine, text):
    session = Session(engine, text, AnswerSettings(), system="old")
    ask(session, "a")
    session.set_system(session.system)
    assert session.messages == [message("system", "old")] and engine.fed_text == ""
    ask(session, "a")
    session.set_system("new")
    assert session.messages == [message("system", "new")] and session.last is None
    ask(session, "b")
    assert engine.fed_text == "s:new|u:b|a:ok"


def test_a_loaded_conversation_is_fed_as_a_whole(engine, session):
    session.load(
        [
            message("user", "a"),
            message("assistant", "b"),
            message("user", "c"),
            message("assistant", "d"),
        ]
    )
    ask(session, "e")
    assert engine.fed_text == "u:a|a:b|u:c|a:d|u:e|a:ok"
    assert session.num_turns == 3


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_message_is_refused(session, question):
    with pytest.raises(UsageError, match="empty"):
        list(session.ask(question))


def test_a_text_that_goes_round_in_circles_is_noticed_and_others_are_not():
    rome = "Rome is a city of history and a city of art and culture. It is a city of tradition. "
    assert goes_round("The capital is Rome. " + rome * 4) and not goes_round(rome * 3)
    assert goes_round("la " * 200) and not goes_round("la " * 30)
    table = "".join(
        f"| {name} | {len(name)} | some words that differ |\n" for name in ["one", "two", "three", "four", "five"]
    )
    assert not any(goes_round(text) for text in ("", "short", table * 2, "-" * 80, "0, " * 60, "x" * 300))


def test_an_answer_that_goes_round_is_stopped_and_kept(engine, session):
    engine.script += ["so. " + "It is a city of art and of history. " * 40, "next"]
    *_, answer = session.ask("hi")
    assert session.has_looped and answer.finish_reason is FinishReason.CANCELLED
    assert len(session.messages[-1]["content"]) < 200
    ask(session, "go on")
    assert not session.has_looped
