import io
import signal

import pytest

from kvlite.chat import slash_commands
from kvlite.chat.display import AnswerFormat, Display
from kvlite.chat.loop import Chat, Opened, Pasted, message_of
from kvlite.chat.session import Session
from kvlite.chat.session_files import SessionFolder
from kvlite.console import Console
from kvlite.errors import ContextFull, DoesNotFit, Interrupted, ModelNotFound, Terminated
from kvlite.llm.answer import AnswerSettings
from kvlite.llm.chat_memory import TurnKept
from kvlite.llm.saved_row import Unusable
from kvlite.record.recorder import Recorder
from tests.chat.messages import message


class Script:
    """A prompt that reads a list; an exception in it is raised."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def read(self):
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def begin_with(self, text):
        self.begun = text


class FakeMemory:
    """Three turns, of which the first is gone and the second nearly."""

    def __init__(self, session):
        self.session, self.pinned = session, set()

    def turns(self):
        shares = ((0.0, 0.0, 0.0), (0.004, 0.0, 0.5), (1.0, 1.0, 1.0))[: self.session.num_turns]
        return [TurnKept(n, 40, sum(cells) / 3, cells, n in self.pinned) for n, cells in enumerate(shares, 1)]

    def before_turns(self):
        return 3 * bool(self.session.num_turns)

    def pin(self, number):
        self.pinned.add(number)
        return self.turns()[number - 1]

    def heads_with_room(self):
        return (6, 6) if self.pinned != {2} else (4, 6)

    def unpin(self, number):
        self.pinned.remove(number)

    def save(self, path, messages):
        if self.session.conversation.holds(messages):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(repr(messages).encode())
            return path.stat().st_size
        return None

    def load(self, path, messages):
        if not path.exists() or path.read_bytes() != repr(messages).encode():
            raise Unusable("its cache was not saved")
        return 42

    def tokens_of(self, text):
        return len(text.split())

    def panel(self):
        return [("tokens seen", f"{self.session.counts().tokens_seen}"), ("policy", "window")]


class Held:
    """A chat with its engine and what it wrote."""

    def __init__(self, engine, text, folder, autosaves=True, shows_thinking=False, keeps_cache=True):
        self.engine = engine
        self.out, self.err = io.StringIO(), io.StringIO()
        self.folder = SessionFolder(folder)
        console = Console(stdout=self.out, stderr=self.err)
        recorder = Recorder("chat", (), report="none")
        display = Display(console, recorder, AnswerFormat(shows_thinking=shows_thinking))
        session = Session(engine, text, AnswerSettings())
        memory = FakeMemory(session)
        saves = {"autosaves": autosaves, "keeps_cache": keeps_cache}
        self.opened = []

        def opens(name):
            if name == "none":
                raise ModelNotFound("no model is called none")
            return lambda: self._open(name, engine, text)

        self.chat = Chat(Opened(session, memory, "demo", "demo"), self.folder, display, opens=opens, **saves)

    def _open(self, name, engine, text):
        self.opened.append(name)
        if name == "large":
            raise DoesNotFit("too large")
        session = Session(engine, text, AnswerSettings())
        return Opened(session, FakeMemory(session), f"{name}@1", name)

    def type(self, *lines, first=None):
        self.chat.is_over = False
        self.script = Script(*lines)
        self.chat.run(self.script, first)
        return self

    @property
    def said(self):
        return self.err.getvalue()


@pytest.fixture
def held(engine, text, tmp_path):
    return Held(engine, text, tmp_path / "sessions")


def test_answers_go_to_stdout_and_everything_else_to_stderr(held):
    held.engine.script += ["hello", "fine"]
    held.type("hi", "/set", "how are you")
    assert held.out.getvalue() == "hello\nfine\n"
    assert "5 tok · 10.0 tok/s · TTFT 0.2 s · KV 120 B" in held.said and "temperature" in held.said


def test_the_first_prompt_is_sent_before_anything_is_read(held):
    held.type(first="hi")
    assert held.out.getvalue() == "ok\n" and held.chat.session.num_turns == 1


def test_empty_lines_are_passed_over(held):
    held.type("", "   ", '"""  """')
    assert held.engine.requests == []


@pytest.mark.parametrize(
    ("line", "sent"),
    [(" hi ", "hi"), ('"""a\nb"""', "a\nb"), ('"""\na\n"""\n', "a"), (" /etc is a folder", "/etc is a folder")],
)
def test_message_of_takes_off_what_only_delimits(line, sent):
    assert message_of(line) == sent


@pytest.mark.parametrize("pasted", ['"""Doc."""\nimport os\n', "  indented\n", "/etc/passwd\n/bin", "/etc is a folder"])
def test_what_is_pasted_is_sent_as_it_is(held, pasted):
    held.type(Pasted(pasted))
    assert held.chat.session.messages[0]["content"] == pasted.strip("\n")


def test_words_that_mean_a_command_are_one_and_are_sent_behind_a_space(held):
    held.type(" exit", "help", "?", "exit", "never read")
    assert [message["content"] for message in held.chat.session.messages[::2]] == ["exit"]
    assert held.said.count("list the commands") == 2 and held.script.lines == ["never read"]


def test_a_chat_that_begins_to_sample_draws_a_seed_and_shows_it(held, monkeypatch):
    monkeypatch.setattr("kvlite.chat.slash_commands.secrets.randbelow", lambda below: 12345)
    held.type("/set temperature=0.7")
    assert held.chat.session.settings.sampling.seed == 12345 and "seed                12345" in held.said
    held.type("/set seed=7", "/set temperature=0", "/set temperature=0.7")
    assert held.chat.session.settings.sampling.seed == 7


def test_a_pasted_line_that_begins_with_a_command_is_one(held):
    held.type(Pasted("/mem\n"))
    assert "tokens seen" in held.said and held.engine.requests == []


@pytest.mark.parametrize(
    ("line", "hint"), [("/retyr", "did you mean /retry?"), ("/xyzzy", "/help lists"), ("/", "/help")]
)
def test_an_unknown_command_is_answered_with_a_suggestion_and_never_sent(held, line, hint):
    held.type(line)
    assert hint in held.said and held.engine.requests == []


def test_typed_bytes_that_are_not_utf8_become_readable(held):
    held.type("caf\udce9", "/system \udce9")
    assert held.engine.fed_text == "" and held.chat.session.system == "?"
    assert held.engine.requests[0].ids == tuple(map(ord, "u:caf?|a:"))


@pytest.mark.parametrize("line", ["/exit", "/quit", "/bye"])
def test_leaving(held, line):
    held.type(line, "never read")
    assert held.script.lines == ["never read"]


def test_help_lists_every_command(held):
    held.type("/help")
    assert all(f"/{command.names[0]}" in held.said for command in slash_commands.COMMANDS)


def test_an_argument_nobody_reads_is_refused(held):
    held.type("/retry now")
    assert "takes no argument" in held.said


def test_clear_starts_over_in_a_file_of_its_own(held):
    held.type("a", "/clear", "b")
    assert held.chat.session.num_turns == 1
    assert [len(held.folder.file(info.name).load()) for info in held.folder.saved()] == [2, 2]


def test_retry_replaces_the_answer_in_the_file(held):
    held.engine.script += ["one", "two"]
    held.type("a", "/retry")
    (info,) = held.folder.saved()
    assert [message["content"] for message in held.folder.file(info.name).load()] == ["a", "two"]
    assert "greedy" in held.said


def test_undo_takes_turns_out_of_the_file(held):
    held.type("a", "b", "c", "/undo 2")
    (info,) = held.folder.saved()
    assert [message["content"] for message in held.folder.file(info.name).load()] == ["a", "ok"]
    assert "back to before: b" in held.said


@pytest.mark.parametrize("line", ["/undo x", "/undo -1", "/undo 5", "/set", "/set colour=red", "/set seed", "/load"])
def test_mistakes_do_not_end_the_chat(held, line):
    held.type(line, "hi")
    assert held.out.getvalue() == "ok\n"


def test_set_changes_the_next_answer(held):
    held.engine.script += ["long answer"]
    held.type("/set max_tokens=4", "/set seed=7", "hi")
    assert held.out.getvalue() == "long\n" and held.engine.requests[0].sampling.seed == 7
    assert "length" in held.said


def test_system_shows_or_starts_over(held):
    held.type("a", "/system be brief", "/system", "b")
    assert held.chat.session.messages[0] == message("system", "be brief") and held.chat.session.num_turns == 1
    assert "be brief" in held.said


def test_mem_gives_the_counts(held):
    held.type("hi", "/mem")
    assert "tokens seen" in held.said and "window" in held.said


def test_an_answer_that_a_signal_breaks_off_is_saved_as_far_as_it_got(held):
    held.engine.script.append("one two three")
    run = held.engine.run

    def breaking(requests):
        for number, event in enumerate(run(requests)):
            if number == 7:
                raise Terminated("terminated")
            yield event

    held.engine.run = breaking
    with pytest.raises(Terminated):
        held.type("hi")
    (saved,) = held.folder.saved()
    last = held.folder.file(saved.name).load()[-1]
    assert last == {"role": "assistant", "content": "one two", "finish_reason": "cancelled"}


def test_forgotten_shows_each_turn_with_what_is_left_of_it(held):
    held.engine.slots = 20
    held.type("first question", "second", "third", "/pin 3", "/forgotten")
    assert "turn 3 is pinned: all of it stays" in held.said
    assert "   1  ···    0 % of    40 tok  first question" in held.said
    assert "   2  ░·▒   17 %" in held.said and "   3  ███  100 % of    40 tok pinned  third" in held.said
    assert "of turn 1 nothing is left" in held.said


def test_heads_without_room_for_a_pin_are_told(held):
    held.type("a", "b", "/pin 2")
    assert "turn 2 is pinned: what is left of it (17 %) stays in 4 of 6 heads; the others keep" in held.said.replace(
        "\n", " "
    )


def test_pins_are_saved_and_go_along_to_another_model(held):
    held.type("a", "b", "/save kept")
    held.chat.session.conversation.pinned = {2}
    held.type("c", "/model other")
    assert held.chat.session.conversation.pinned == {2}
    held.type("/clear", "/load kept")
    assert held.chat.session.conversation.pinned == {2}


@pytest.mark.parametrize("line", ["/pin", "/pin x", "/unpin 1.5"])
def test_a_pin_takes_the_number_of_a_turn(held, line):
    held.type("hi", line)
    assert "takes the number of a turn" in held.said


@pytest.mark.parametrize(
    ("line", "hint"),
    [("/budget", "takes a size"), ("/budget 1GB 2GB", "takes a size"), ("/policy", "window"), ("/check", "no answer")],
)
def test_a_change_that_is_none_is_told_what_it_takes(held, line, hint):
    held.type(line)
    assert hint in held.said


def test_a_turn_that_was_taken_back_is_gone_from_the_file_too(held):
    held.type("secret", "/undo")
    (info,) = held.folder.saved()
    assert b"secret" not in held.folder.file(info.name).path.read_bytes()
    assert held.folder.file(info.name).load() == []


def test_save_and_load_under_a_name(held):
    held.type("a", "/save notes", "b", "/clear", "/load notes", "c")
    assert [message["content"] for message in held.folder.file("notes").load()] == ["a", "ok", "b", "ok", "c", "ok"]
    assert "loaded notes: 2 turns" in held.said


def test_save_does_not_overwrite_another_session(held):
    held.type("a", "/save notes", "/clear", "b", "/save notes")
    assert "exists" in held.said and len(held.folder.file("notes").load()) == 2


def test_save_refuses_a_name_that_leaves_the_folder(held):
    held.type("a", "/save ../../evil")
    assert "no session name" in held.said


def test_without_saving_only_an_explicit_save_writes(engine, text, tmp_path):
    held = Held(engine, text, tmp_path / "s", autosaves=False).type("a")
    assert held.folder.saved() == []
    held.chat.is_over = False
    held.type("/save notes", "/sessions")
    assert [info.name for info in held.folder.saved()] == ["notes"] and "notes" in held.said


def test_a_disk_that_refuses_does_not_end_the_chat(engine, text, tmp_path):
    (tmp_path / "file").write_text("")
    held = Held(engine, text, tmp_path / "file" / "sessions").type("a", "b")
    assert held.out.getvalue() == "ok\nok\n" and "cannot be saved" in held.said


def test_a_full_context_keeps_the_question_for_retry(held):
    held.engine.script += [ContextFull("no slot left"), "fine"]
    held.type("question", "/retry")
    assert "no slot left" in held.said and "/retry asks it again" in held.said
    assert held.chat.session.messages[0]["content"] == "question" and held.out.getvalue() == "fine\n"


def test_another_model_goes_on_with_the_conversation(held):
    held.type("a", "/model other", "b")
    assert held.engine.fed_text == "u:a|a:ok|u:b|a:ok" and "read by this model with your next message" in held.said
    (info,) = held.folder.saved()
    assert info.summary().model == "other@1" and info.summary().turns == 2


def test_a_model_that_cannot_be_had_leaves_the_one_there_is(held):
    held.type("a", "/model none", "b", "/model large", "c", "/model")
    assert "no model is called none" in held.said and "too large" in held.said
    assert held.opened == ["large", "demo"] and held.chat.session.num_turns == 3 and "demo@1; /model NAME" in held.said


def test_evictions_are_announced_once_and_counted_each_turn(held):
    held.engine.slots = 10
    held.type("a", "b", "c")
    assert held.said.count("the model no longer sees") == 1 and held.said.count("evicted") >= 2


def test_an_answer_that_had_no_room_says_so(held):
    held.engine.cut_short = "all 5 slots are full"
    held.type("a")
    assert "the answer was cut short: all 5 slots are full" in held.said


def test_thinking_goes_to_stderr_when_asked_for(engine, text, tmp_path):
    held = Held(engine, text, tmp_path, shows_thinking=True)
    engine.script.append("<hm>yes")
    held.type("a")
    assert held.out.getvalue() == "yes\n" and "h" in held.said


def interrupt_at(held, monkeypatch, *numbers):
    """Press Ctrl-C as the engine's events of these numbers come."""

    def interrupting(requests, run=held.engine.run):
        for number, event in enumerate(run(requests)):
            for _ in range(numbers.count(number)):
                signal.raise_signal(signal.SIGINT)
            yield event

    monkeypatch.setattr(held.engine, "run", interrupting)


def test_ctrl_c_during_an_answer_keeps_the_partial_text(held, monkeypatch):
    interrupt_at(held, monkeypatch, 2)
    held.engine.script.append("a long answer")
    held.type("hi")
    assert held.out.getvalue() == "a l\n" and "cancelled" in held.said
    (info,) = held.folder.saved()
    assert held.folder.file(info.name).load()[-1] == message("assistant", "a l", "cancelled")


def test_ctrl_c_twice_during_an_answer_saves_it_as_cancelled_and_ends(held, monkeypatch):
    interrupt_at(held, monkeypatch, 2, 2)
    held.engine.script.append("a long answer")
    with pytest.raises(Interrupted):
        held.type("hi", "never read")
    (info,) = held.folder.saved()
    assert held.folder.file(info.name).load() == [
        message("user", "hi"),
        message("assistant", "a l", "cancelled"),
    ]


def test_ctrl_c_before_the_answer_has_begun_stops_it_at_its_first_token(held, monkeypatch):
    def late(request_id, reason=None, cancel=held.engine.cancel):
        if held.engine.requests:  # as an engine that does not know the request yet
            cancel(request_id)

    monkeypatch.setattr(held.engine, "cancel", late)
    encode = held.chat.session._text.conversation

    def interrupted(messages):
        signal.raise_signal(signal.SIGINT)
        return encode(messages)

    monkeypatch.setattr(held.chat.session._text, "conversation", interrupted)
    held.engine.script.append("a long answer")
    held.type("hi")
    assert held.out.getvalue() == "a\n" and "cancelled" in held.said


def test_a_third_ctrl_c_does_not_wait_for_the_answer(held, monkeypatch):
    interrupt_at(held, monkeypatch, 2, 2, 2)
    held.engine.script.append("a long answer")
    with pytest.raises(Interrupted):
        held.type("hi")
    assert held.chat.session.messages == []


def test_ctrl_c_at_the_prompt_clears_the_line_and_twice_ends(held):
    with pytest.raises(Interrupted):
        held.type(KeyboardInterrupt(), KeyboardInterrupt())


def test_ctrl_c_twice_but_slowly_goes_on(held, monkeypatch):
    times = iter(range(0, 100, 5))
    monkeypatch.setattr("kvlite.chat.interrupt.time.monotonic", lambda: float(next(times)))
    held.type(KeyboardInterrupt(), "hi", KeyboardInterrupt())
    assert held.out.getvalue() == "ok\n"


def test_the_signal_handler_is_put_back(held):
    before = signal.getsignal(signal.SIGINT)
    held.type("hi")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_closed_pipe_stops_the_answer_and_is_left_to_the_caller(engine, text, tmp_path):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    held = Held(engine, text, tmp_path)
    held.chat._console.stdout = Closed()
    with pytest.raises(BrokenPipeError):
        held.type("hi")
    assert held.chat.session.messages == []
