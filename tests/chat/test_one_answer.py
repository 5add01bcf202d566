import io
import json
import signal
from types import SimpleNamespace

import pytest

from kvlite.chat.display import AnswerFormat, Display, answer_prompt
from kvlite.console import Console
from kvlite.deadline import Deadline
from kvlite.engine.request import Sampling
from kvlite.errors import ContextFull, Interrupted, TimeLimit, UsageError
from kvlite.llm import openai
from kvlite.llm.answer import AnswerSettings
from kvlite.record.recorder import Recorder

CODE = "Here:\n```python\nprint(1)\n```\nand\n```\nprint(2)\n```\n"


@pytest.fixture
def answered(engine, text):
    """Answers one question and gives back what was written to stdout and stderr."""

    def answer(says, output=None, settings=None, deadline=None):
        engine.script.append(says)
        answer.out, answer.err = io.StringIO(), io.StringIO()
        console = Console(stdout=answer.out, stderr=answer.err)
        display = Display(console, Recorder("run", (), report="none"), output or AnswerFormat())
        encoded = text.conversation([{"role": "user", "content": "hi"}])
        llm = SimpleNamespace(engine=engine, model=SimpleNamespace(text=text, name="demo"))
        answer_prompt(llm, encoded, settings or AnswerSettings(), display, deadline or Deadline(None))
        return answer.out.getvalue()

    return answer


@pytest.mark.parametrize("says", ["hello", "hello\n"])
@pytest.mark.parametrize("extracts", [True, False])
def test_the_answer_ends_with_one_newline(answered, says, extracts):
    assert answered(says, AnswerFormat(extracts=extracts)) == "hello\n"


def test_json_is_a_chat_completion_with_what_kvlite_counted(answered):
    settings = AnswerSettings(sampling=Sampling(temperature=1.0, seed=7), max_tokens=4)
    body = json.loads(answered("<hm>hello", AnswerFormat(as_json=True), settings))
    assert body["object"] == "chat.completion" and body["model"] == "demo"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == openai.usage(7, 4)
    assert body["kvlite"]["seed"] == 7 and body["kvlite"]["kv"]["tokens_seen"] == 11
    assert set(body["kvlite"]["timing"]) == {"ttft_s", "total_s", "tok_s"}


@pytest.mark.parametrize(
    ("says", "code"),
    [
        (CODE, "print(1)\n"),
        ("~~~\na\n~~~", "a\n"),
        ("````\n```\na\n````", "```\na\n"),
        ("```sh\nunfinished", "unfinished\n"),
        ("  ```\n  a\n  ```", "  a\n"),
    ],
)
def test_extract_prints_the_first_code_block(answered, says, code):
    assert answered(says, AnswerFormat(extracts=True)) == code


def test_extract_prints_all_and_says_so_where_there_is_no_code_block(answered):
    assert answered("no `code` here", AnswerFormat(extracts=True)) == "no `code` here\n"
    assert "no code block" in answered.err.getvalue()


def test_forms_that_exclude_each_other_are_refused():
    with pytest.raises(UsageError, match="contradicts"):
        AnswerFormat(extracts=True, as_json=True)


def test_thinking_time_and_evictions_go_to_stderr(engine, answered):
    engine.slots = 5
    assert answered("<hm>yes", AnswerFormat(shows_thinking=True, shows_time=True)) == "yes\n"
    said = answered.err.getvalue()
    assert said.startswith("hm\n") and "tok/s" in said and "no longer sees" in said


def test_an_answer_that_had_no_room_says_so(engine, answered):
    engine.cut_short = "all 5 slots are full"
    answered("yes", AnswerFormat())
    assert "the answer was cut short: all 5 slots are full" in answered.err.getvalue()


def test_ctrl_c_prints_what_there_is_and_ends_with_interrupted(engine, answered, monkeypatch):
    interrupt_after(engine, monkeypatch, signal.SIGINT)
    with pytest.raises(Interrupted):
        answered("a long answer", AnswerFormat())


def test_the_end_of_the_time_cancels_the_answer(engine, answered, monkeypatch):
    interrupt_after(engine, monkeypatch, signal.SIGALRM)
    deadline = Deadline(1000.0)
    with deadline.running(), pytest.raises(TimeLimit, match="1000 s"):
        answered("a long answer", AnswerFormat(as_json=True), deadline=deadline)
    choice = json.loads(answered.out.getvalue())["choices"][0]
    assert choice["finish_reason"] == "cancelled" and choice["message"]["content"] == "a l"


def test_the_end_of_the_time_outside_an_answer_raises_at_once():
    deadline = Deadline(1000.0)
    before = signal.getsignal(signal.SIGALRM)
    with deadline.running(), pytest.raises(TimeLimit):
        signal.raise_signal(signal.SIGALRM)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_an_ignored_ctrl_c_stays_ignored(engine, answered, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt_after(engine, monkeypatch, signal.SIGINT)
        assert answered("a long answer") == "a long answer\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_failed_answer_ends_its_line_and_raises(answered):
    with pytest.raises(ContextFull):
        answered(ContextFull("no slot left"))


def interrupt_after(engine, monkeypatch, number):
    """Let a signal arrive after the third token."""
    run = engine.run

    def interrupted(requests):
        for index, event in enumerate(run(requests)):
            if index == 2:
                signal.raise_signal(number)
            yield event

    monkeypatch.setattr(engine, "run", interrupted)
