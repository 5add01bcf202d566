"""Effects of the commands about a conversation on it, on its files and on the next prompt."""

import json

import pytest

from kvlite.chat.attachments import fenced, with_files
from kvlite.chat.export import FORMATS, exported
from kvlite.chat.loop import Pasted
from kvlite.chat.roles import role_folder
from kvlite.errors import BudgetTooSmall, DoesNotFit, UsageError
from kvlite.llm.saved_row import Unusable
from tests.chat.messages import message
from tests.chat.test_loop import Held


@pytest.fixture
def held(engine, text, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Held(engine, text, tmp_path / "sessions")


class Edited:
    """A prompt that is told what the next text begins with."""

    def __init__(self):
        self.begun = ""

    def begin_with(self, text):
        self.begun = text


def contents(held):
    return [message["content"] for message in held.chat.session.messages]


@pytest.mark.parametrize(("line", "begun", "left"), [("/edit", "c", 4), ("/edit 1", "a", 0), ("/edit 2", "b", 2)])
def test_a_question_is_edited_at_the_prompt_and_takes_its_place_when_it_is_sent(held, line, begun, left):
    held.type("a", "b", "c")
    held.chat.prompt = Edited()
    held.chat.handle(line)
    assert held.chat.prompt.begun == begun and len(contents(held)) == 6
    held.chat.handle("edited")
    assert contents(held)[left:-1] == ["edited"]


@pytest.mark.parametrize("instead", [KeyboardInterrupt(), "/mem", EOFError()])
def test_an_edited_question_that_is_not_sent_leaves_all_as_it_was(held, instead):
    held.type("a", "b", "/edit 1", instead, "c")
    assert contents(held)[::2] == ["a", "b", "c"][: 2 + (not isinstance(instead, EOFError))]


def test_where_nothing_was_said_there_is_nothing_to_edit(held):
    held.type("/edit")
    assert "ask something first" in held.said and "turn 0" not in held.said


def test_think_says_what_was_taken_and_what_holds(held):
    held.type("/think", "/think off", "/think", "/think maybe")
    lines = [line for line in held.said.splitlines() if "think" in line]
    assert [line.partition(";")[0] for line in lines[:3]] == [
        "think auto",
        "think off from the next message on",
        "think off",
    ]
    assert "not 'maybe'" in lines[3]


def test_where_the_text_may_not_be_saved_neither_is_the_cache(held):
    held.type("a", "/save notes", "b")
    file = held.folder.file("notes")
    file.path.write_text(file.path.read_text() + json.dumps({"role": "user", "content": "of another chat"}) + "\n")
    file.cache_path.write_bytes(b"of another chat")
    held.type("c")
    held.chat.close()
    assert "another process" in held.said and file.cache_path.read_bytes() == b"of another chat"


def test_a_look_at_a_session_that_cannot_take_its_cache_leaves_it_there(engine, text, tmp_path, held):
    held.type("a", "/save notes")
    held.chat.close()
    file = held.folder.file("notes")
    cache = file.cache_path.read_bytes()
    for keeps_cache in (True, False):
        other = Held(engine, text, tmp_path / "sessions", keeps_cache=keeps_cache)
        other.chat.memory.load = unusable
        other.chat.load("notes")
        other.type("/forgotten", "/set")
        other.chat.close()
        assert "it was another budget" in other.said and file.cache_path.read_bytes() == cache


def unusable(path, messages):
    raise Unusable("it was another budget")


def test_a_greedy_retry_from_another_state_does_not_promise_the_same_answer(held):
    held.engine.slots = 12
    held.type("a question that is long", "another one")
    held.chat.session.conversation.drop_checkpoints()
    held.type("/retry")
    assert "gives the same answer again" not in held.said
    held.type("/retry")  # which goes back to the copy that the one before has taken
    assert ("gives the same answer again" in held.said) == bool(held.engine.num_restored)


def test_a_role_begins_with_the_settings_of_the_chat_and_a_seed_of_its_own(held):
    role_folder().mkdir(parents=True, exist_ok=True)
    for name, text in {"warm": "temperature = 0.4", "empty": "", "odd": "system = 5", "torn": 'system = "x'}.items():
        (role_folder() / f"{name}.toml").write_text(text)
    held.type("/set top_p=0.5", "/role warm")
    warm = held.chat.session.settings.sampling
    assert (warm.temperature, warm.top_p) == (0.4, 1.0) and warm.seed
    held.type("/role empty", "/role odd", "/role")
    assert held.chat.session.settings.sampling.is_greedy
    assert "system is 5; give text in quotes" in held.said and "not valid TOML" in held.said and "  warm" in held.said


def test_a_file_that_is_named_and_is_not_there_is_warned_of(held):
    held.type("@nope.txt what", "@somebody hello", "a@b.c wrote")
    assert held.said.count("there is no file") == 1 and "no file nope.txt, so" in held.said


def test_another_model_goes_on_with_what_was_set(held):
    held.type("/set temperature=0.3", "/set max_tokens=7", "/model other")
    settings = held.chat.session.settings
    assert (settings.sampling.temperature, settings.max_tokens) == (0.3, 7)
    assert held.chat.begun_with.sampling.is_greedy


def test_a_chat_whose_models_cannot_be_loaded_any_more_ends_with_the_error(held):
    held.type("a", "/save notes")
    held.chat._asked = "large"  # which was here, and does not fit any more
    with pytest.raises(DoesNotFit):
        held.type("/model large", "b")
    held.chat.close()
    assert held.chat.is_over and len(held.folder.file("notes").load()) == 2


def test_ctrl_c_while_another_model_loads_brings_back_the_one_before(held):
    def stop():
        raise KeyboardInterrupt

    held.type("a")
    opens = held.chat._opens
    held.chat._opens = lambda name: stop if name == "slow" else opens(name)
    held.type("/model slow", "b")
    assert contents(held)[::2] == ["a", "b"] and held.opened == ["demo"]


def test_a_system_prompt_without_room_leaves_the_conversation_in_its_file(held, monkeypatch):
    held.type("a", "/save one")

    def refuse(pins):
        raise BudgetTooSmall("too long")

    monkeypatch.setattr(held.engine, "check_pins", refuse, raising=False)
    held.type("/system a very long one", "b")
    assert [session.name for session in held.folder.saved()] == ["one"]
    assert len(held.folder.file("one").load()) == 4


def test_there_is_no_other_turn_to_edit(held):
    held.type("a", "/edit 2", "/edit x")
    assert "there is no turn 2" in held.said and "takes the number" in held.said and len(contents(held)) == 2


def test_continue_goes_on_with_an_answer_that_was_cut_short(held):
    held.engine.script += ["one two", " three"]
    held.type("/set max_tokens=7", "count", "/set max_tokens=99")
    held.chat.session.messages[-1]["finish_reason"] = "length"
    held.chat.handle("/continue")
    assert contents(held) == ["count", "one two three"] and held.out.getvalue().endswith(" three\n")


def test_continue_has_nothing_to_go_on_with_where_the_answer_ended(held):
    held.type("/continue", "a", "/continue")
    assert "no answer to go on with" in held.said and "ended by itself" in held.said


def test_a_branch_leaves_the_conversation_as_it_was(held):
    held.type("a", "/save trunk", "/branch twig", "b")
    assert [len(held.folder.file(name).load()) for name in ("trunk", "twig")] == [2, 4]
    held.type("/branch trunk")
    assert "exists" in held.said


def test_a_session_goes_on_from_its_cache_and_shows_where_it_stands(held, engine, text):
    held.type("a", "first\nsecond", "/save notes", "/clear", "/load notes")
    assert "loaded notes: 2 turns, 42 tokens as they were in the cache" in held.said
    assert held.said.rstrip().endswith("ok") and ">>> first\nsecond" in held.said
    held.folder.file("notes").cache_path.write_bytes(b"torn")
    held.type("/load notes")
    assert "read by the model with your next message: its cache was not saved" in held.said


def test_without_save_kv_no_cache_is_written(engine, text, tmp_path):
    held = Held(engine, text, tmp_path / "s", keeps_cache=False).type("a")
    held.chat.close()
    (session,) = held.folder.saved()
    assert session.cache_bytes == 0


def test_only_the_latest_caches_stay(held, monkeypatch):
    monkeypatch.setattr("kvlite.chat.saving.KEPT_CACHES", 2)
    for name in ("one", "two", "three", "four"):
        held.type("a", f"/save {name}", "/clear")
    assert sum(session.cache_bytes > 0 for session in held.folder.saved()) == 2


def test_sessions_are_found_by_what_was_said(held):
    held.type(
        "tell me of Rome", "/save rome", "/clear", "and of Oslo", "/save oslo", "/sessions ROME tell", "/sessions xyz"
    )
    assert "rome" in held.said.split("saved as oslo")[1] and "no session with xyz" in held.said
    assert [found.name for found in held.folder.found(["oslo"])] == ["oslo"]


def test_a_damaged_session_is_listed_with_what_is_wrong(held):
    held.type("a")
    held.folder.folder.joinpath("bad.jsonl").write_text("{nonsense\n")
    found = {each.name: each for each in held.folder.found([])}
    assert "line 1" in found["bad"].problem and len(found) == 2


@pytest.mark.parametrize("kind", [*FORMATS])
def test_a_conversation_is_exported_once_under_a_name(held, kind, tmp_path):
    held.engine.script.append("**bold** <b>&")
    held.type("what?", f"/export {kind}", f"/export {kind}", f"/export sub.{kind}")
    (first, second) = sorted(path for path in (tmp_path / "work").iterdir())
    assert first.read_text() and second.name == f"sub.{kind}" and "is there already" in held.said


def test_exports_hold_what_was_said():
    said = [message("user", "a <b>?"), message("assistant", "**yes** <script>", "stop")]
    texts = {kind: exported(said, kind, "t")[0] for kind in FORMATS}
    assert "**yes** <script>" in texts["md"] and "a &lt;b&gt;?" in texts["html"]
    assert "<strong>yes</strong> &lt;script&gt;" in texts["html"]
    plain = [message("user", "a <b>?"), {"role": "assistant", "content": "**yes** <script>"}]
    assert json.loads(texts["json"])["messages"] == plain == [json.loads(line) for line in texts["jsonl"].splitlines()]
    with pytest.raises(UsageError, match="cannot export"):
        exported(said, "notes.pdf", "t")


def test_files_go_with_a_message_by_name_or_read_before(held, tmp_path):
    (tmp_path / "work" / "a b.txt").write_text("alpha\n")
    (tmp_path / "work" / "c.py").write_text("x = '```'\n")
    held.type('/read "a b.txt"', "look at @c.py please", "and @missing.txt", Pasted("as @c.py is"))
    questions = contents(held)[::2]
    assert questions[0] == "look at @c.py please\n\nc.py:\n````\nx = '```'\n````\n\na b.txt:\n```\nalpha\n```"
    assert questions[1:] == ["and @missing.txt", "as @c.py is"] and "with c.py" in held.said


@pytest.mark.parametrize(
    ("data", "why"), [(b"\xff", "no text in UTF-8"), (b"a\0b", "no text"), (None, "cannot be read")]
)
def test_a_file_that_is_no_text_is_refused(held, tmp_path, data, why):
    if data is not None:
        (tmp_path / "work" / "x").write_bytes(data)
    held.type("/read x", "hi")
    assert why in held.said and contents(held)[0] == "hi"


def test_copy_hands_the_answer_to_the_terminal(held):
    held.type("/copy", "a", "/copy")
    assert "no answer to copy" in held.said and "copied 2 characters" in held.said
    assert "\x1b" not in held.out.getvalue()  # which is none here


def test_tokens_counts_a_text_or_the_turns(held):
    held.type("/tokens one two three", "a", "/tokens")
    assert "3 tokens" in held.said and "turn 1" in held.said


def test_a_fence_is_longer_than_any_in_the_file():
    assert fenced("a", "x").count("`") == 6 and fenced("a", "````").startswith("a:\n`````\n")
    assert with_files("mail me@example.com")[1] == []
