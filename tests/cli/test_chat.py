"""`kvlite chat` on the built-in model: at a terminal whose keys a test types, and at a pipe."""

import io
import re
import shutil
import sys
import weakref
from dataclasses import replace
from threading import Event

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from kvlite.cache.cache import SlotCache
from kvlite.catalog.names import demo_folder
from kvlite.chat.session_files import SessionFolder
from kvlite.chat.terminal import Terminal
from kvlite.cli import main
from kvlite.cli.answering import CHAT_SAMPLING, Answering
from kvlite.llm import LLM
from kvlite.llm.answer import AnswerSettings
from kvlite.llm.text_model import TextModel
from kvlite.options import AnswerOptions
from kvlite.record.store import RunRecords


@pytest.fixture
def pipe(monkeypatch):
    """Puts bytes on stdin."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.fixture
def chat(capfd):
    """Runs `kvlite chat` and gives back exit code, stdout and stderr."""

    def chat(*args):
        code = main(["chat", *args])
        return (code, *capfd.readouterr())

    return chat


@pytest.fixture
def live(monkeypatch):
    """Stderr counts as a terminal on which lines may be redrawn: the model loads behind the prompt."""
    monkeypatch.setattr("kvlite.console.Console.has_live_stderr", True)


@pytest.fixture
def typed(chat, monkeypatch):
    """Runs `kvlite chat` at a terminal where these lines are typed, then Ctrl-D."""

    class Typing(io.StringIO):
        def isatty(self):
            return True

    def typed(*lines, args=("demo", "--greedy")):
        monkeypatch.setattr(sys, "stdin", Typing())
        monkeypatch.setattr("kvlite.chat.terminal.create_output", lambda **_: DummyOutput())
        with create_pipe_input() as keys, create_app_session(input=keys):
            keys.send_text("".join(f"{line}\r" for line in lines) + "\x04")
            return chat(*args)

    return typed


def test_a_pipe_is_answered_as_run_does_and_never_loops(chat, pipe):
    pipe(b"Hello\n")
    code, out, err = chat("demo", "--greedy")
    assert code == 0 and out.strip() and "demo" in err
    assert SessionFolder().saved() == []
    assert RunRecords().load("last").command == "chat"


def test_without_a_model_the_built_in_one_answers_and_says_so(chat, pipe, typed):
    pipe(b"Hello\n")
    assert "no model is named" in chat()[2]
    said = typed("Hello", args=())[2]
    assert "no model is named" in said and "kvlite pull smollm2-135m  " in said and "ls --aliases" in said
    said = typed("Hello")[2]
    assert "no model is named" not in said and "kvlite pull" not in said


@pytest.fixture
def unsaid(tmp_path):
    """The built-in model with nothing said about sampling."""
    folder = shutil.copytree(demo_folder(), tmp_path / "unsaid")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    return str(folder)


def test_a_chat_samples_unless_something_else_is_asked_for(unsaid, typed, chat, pipe):
    def talk(*more):
        code, out, err = typed("Tell me a story", args=(unsaid, "--no-save", "-n", "12", *more))
        assert code == 0
        return out, re.findall(r"temperature (\S+), top-p 0.95, seed (\d+) · --greedy", err)

    first, second, again = talk(), talk("--seed", "7"), talk("--seed", "7")
    assert first[1][0][0] == "0.7" and first[1][0][1] != "7"
    assert second[1] == [("0.7", "7")] and second == again
    assert talk("--greedy")[1] == [] and talk("-t", "0.3", "--seed", "1")[1] == [("0.3", "1")]
    pipe(b"Hello\n")
    assert "temperature" not in chat(unsaid)[2]


def test_what_a_model_says_of_sampling_counts_more_than_the_chats_own():
    for generation, temperature in (({}, 0.7), ({"do_sample": True}, 1.0), ({"do_sample": False}, 0.0)):
        settings = AnswerSettings.of(generation, AnswerOptions(seed=0), unnamed=CHAT_SAMPLING)
        assert settings.sampling.temperature == temperature
    settings = AnswerSettings.of({"repetition_penalty": 1.1}, AnswerOptions(top_p=0.5, seed=0), unnamed=CHAT_SAMPLING)
    assert settings.sampling == replace(CHAT_SAMPLING, repetition_penalty=1.1, top_p=0.5)
    assert AnswerSettings.of({}, AnswerOptions(greedy=True), unnamed=CHAT_SAMPLING).sampling.is_greedy
    assert AnswerSettings.of({}, AnswerOptions()).sampling.is_greedy


def test_at_a_pipe_the_prompt_follows_stdin(chat, pipe):
    pipe(b"")
    assert chat("demo")[0] == 2
    pipe(b"")
    assert chat("demo", "-p", "Hello")[0] == 0


@pytest.mark.parametrize("args", [("-c",), ("--session", "a")])
def test_at_a_pipe_there_is_no_session_to_go_on_with(chat, pipe, args):
    pipe(b"Hello\n")
    code, out, err = chat("demo", *args)
    assert code == 2 and out == "" and "need a terminal" in err


def test_a_conversation_remembers_and_is_saved(typed):
    code, out, err = typed("Hello", "How are you?", "/mem")
    assert code == 0 and len(out.splitlines()) == 2 and "tokens seen" in err
    (info,) = SessionFolder().saved()
    messages = SessionFolder().file(info.name).load()
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    record = RunRecords().load("last")
    assert record.command == "chat" and len(record.requests) == 2 and record.kv.tokens_seen > 0


def test_while_a_model_loads_the_status_says_what_takes_so_long(live, typed, monkeypatch):
    said, statuses, made = [], [], Terminal.__init__

    def seen(call):
        def wrapped(*args, **kwargs):
            said.append(re.sub(r"\d+(\.\d+)?", "0", statuses[0]()))
            return call(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(
        Terminal, "__init__", lambda self, status, *a, **k: (statuses.append(status), made(self, status, *a, **k))[1]
    )
    monkeypatch.setattr("kvlite.cli.answering.import_engine", seen(lambda: None))
    monkeypatch.setattr("kvlite.cli.answering.LLM", seen(LLM))
    monkeypatch.setattr(TextModel, "load", seen(TextModel.load))
    assert typed("Hello")[0] == 0
    assert said == [
        f"demo is loading, {doing}, 0 s" for doing in ("PyTorch and transformers", "0 MB of weights", "the cache")
    ]


def test_what_is_typed_while_the_model_loads_is_answered(live, typed, monkeypatch):
    opens, sent = Answering.open, Event()
    reads = Terminal.read

    def read(self):
        line = reads(self)
        sent.set()
        return line

    monkeypatch.setattr(Terminal, "read", read)
    monkeypatch.setattr(Answering, "open", lambda *a, **k: (sent.wait(30), opens(*a, **k))[1])
    code, out, err = typed("Hello")
    assert code == 0 and len(out.splitlines()) == 1 and "demo · keeps 1,639 tokens in 3.54 MB" in err


def test_a_session_goes_on_behind_the_prompt(live, typed):
    typed("My name is Tom.", args=("demo", "--greedy", "--session", "tom"))
    assert "loaded tom: 1 turn," in typed("Hello", args=("demo", "--session", "tom"))[2]


def test_leaving_while_the_model_loads_does_not_wait_for_it(live, typed, monkeypatch):
    left, loaded = Event(), []
    monkeypatch.setattr(Answering, "open", lambda *a, **k: (left.wait(30), loaded.append(a))[1])
    assert typed("/exit") == (0, "", "") and typed()[0] == 0
    assert loaded == []
    left.set()


def test_what_cannot_be_loaded_ends_the_chat_as_it_always_did(live, typed):
    code, out, err = typed("Hello", args=("demo", "--kv-budget", "1KB"))
    assert (code, out) == (4, "") and "KV budget 1KB holds" in err
    code, out, err = typed("Hello", args=("no-such-model",))
    assert (code, out) == (3, "") and "no model is called" in err


def test_the_first_prompt_may_come_from_the_command_line(typed):
    code, out, _ = typed(args=("demo", "--greedy", "-p", "Hello", "--no-save"))
    assert code == 0 and len(out.splitlines()) == 1 and SessionFolder().saved() == []


def test_undo_and_ask_again_gives_the_same_answer(typed):
    _, out, _ = typed("Hello", "How are you?", "/undo", "How are you?")
    _, second, third = out.splitlines()
    assert second == third


def test_a_session_goes_on_by_name_and_as_the_last_one(typed):
    typed("My name is Tom.", args=("demo", "--greedy", "--session", "tom"))
    _, _, err = typed("Hello", args=("demo", "--greedy", "--session", "tom"))
    assert "loaded tom: 1 turn," in err
    _, _, err = typed("Hello", args=("demo", "--greedy", "-c"))
    assert "loaded tom: 2 turns" in err and len(SessionFolder().file("tom").load()) == 6


def test_a_session_goes_on_from_its_cache_with_the_same_answers(typed):
    args = ("demo", "--greedy", "--kv-budget", "64tok", "-n", "12", "--session", "tom")
    _, whole, _ = typed("My name is Tom.", "Tell me a joke", "Hello", "What is my name?", args=args)
    SessionFolder().file("tom").remove()
    _, first, _ = typed("My name is Tom.", "Tell me a joke", args=args)
    _, second, err = typed("Hello", "What is my name?", args=args)
    assert first + second == whole and "as they were in the cache" in err
    _, _, err = typed("Hello", args=(*args, "--kv-policy", "window"))
    assert "read by the model with your next message: its policy was replay" in err
    typed("Hello", args=(*args, "--no-save-kv"))
    assert SessionFolder().file("tom").cache_bytes == 0


def test_another_model_is_loaded_when_the_first_is_gone(typed, monkeypatch):
    engines, opens = [], Answering.open

    def watched(*args, **kwargs):
        assert all(engine() is None for engine in engines)
        opened = opens(*args, **kwargs)
        engines.append(weakref.ref(opened.engine))
        return opened

    monkeypatch.setattr(Answering, "open", watched)
    code, out, err = typed("Hello", "/model demo", "Hello again", "/model nonesuch")
    assert code == 0 and len(engines) == 2 and len(out.splitlines()) == 2
    assert "read by this model" in err and "no model is called" in err


def test_the_record_tells_what_is_kept_of_each_turn(typed):
    lines = ("My name is Tom.", "Tell me a joke", "/pin 2", "/budget 60tok")
    typed(*lines, args=("demo", "--greedy", "--kv-budget", "64tok"))
    record = RunRecords().load("last")
    assert [turn.turn for turn in record.kv.per_turn] == [1, 2]
    assert record.kv.per_turn[0].kept < 1 and record.kv.per_turn[1].pinned
    assert record.kv.within_budget
    assert record.kv.live_bytes <= record.kv.budget_bytes < record.kv.peak_bytes  # of the larger cache before
    assert any("60 tok" in str(point.event) for point in record.timeline)
    terms = {term.name: (term.predicted_bytes, term.measured_bytes) for term in record.memory.terms}
    assert terms["kv"][0] == terms["kv"][1]


def test_a_saved_system_prompt_stays_and_that_is_said(typed):
    typed("Hello", args=("demo", "--session", "a", "-s", "Be brief."))
    _, _, err = typed("Hello", args=("demo", "--session", "a", "-s", "Be long."))
    assert "system prompt" in err and SessionFolder().file("a").load()[0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-c",), "no session to continue"),
        (("-c", "--session", "a"), "contradicts"),
        (("--session", "../a"), "no session name"),
        (("--json",), "--json"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(typed, args, message):
    code, out, err = typed(args=("demo", *args))
    assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1


def test_a_full_cache_does_not_end_the_chat(typed):
    code, out, err = typed(
        "Tell me a joke", "Hello", "/clear", "Hi", args=("demo", "--kv-budget", "24tok", "--on-full", "error")
    )
    assert code == 0 and "--kv-budget" in err and "/retry asks it again" in err and out.strip()


@pytest.mark.matrix
def test_two_hundred_turns_stay_inside_a_budget_of_64_tokens_in_few_caches(typed, monkeypatch):
    engines, plans = [], []
    opens, allocates = Answering.open, SlotCache.__init__

    def watched(*args, **kwargs):
        opened = opens(*args, **kwargs)
        engines.append(opened.engine)
        plans.clear()  # of what is tried out before
        return opened

    def allocated(cache, shape, plan, *args):
        plans.append(plan)
        allocates(cache, shape, plan, *args)

    monkeypatch.setattr(Answering, "open", watched)
    monkeypatch.setattr(SlotCache, "__init__", allocated)
    args = ("demo", "--greedy", "--kv-budget", "64tok", "-n", "12", "-q")
    code, out, _ = typed(*["Tell me a joke"] * 200, args=args)
    record = RunRecords().load("last")
    assert code == 0 and len(record.requests) == 200 and len(out.splitlines()) >= 200
    assert record.kv.within_budget and record.kv.tokens_kept == 63 and record.kv.tokens_seen > 2048
    assert plans == [*engines[0].rows.plans[1:]]  # as it grows
    assert engines[0].cache.num_bytes == record.kv.reserved_bytes <= record.kv.budget_bytes


def test_the_record_says_what_each_layer_kept_and_what_the_way_back_took(typed):
    assert typed("Hello", "Hello again")[0] == 0
    record = RunRecords().load("last")
    assert record.kv is not None
    assert [layer.layer for layer in record.kv.per_layer] == [0, 1, 2, 3]
    assert {layer.kept for layer in record.kv.per_layer} == {record.kv.tokens_kept}
    assert sum(layer.bytes for layer in record.kv.per_layer) == record.kv.live_bytes
    terms = {term.name: term.measured_bytes for term in record.memory.terms}
    assert 0 < terms["checkpoints"] < record.kv.live_bytes
