"""A chat that is killed: every turn that was finished is in its file, and its cache is used or noticed."""

import io
import os
import random
import signal
import time

import pytest

from kvlite.chat.display import AnswerFormat, Display
from kvlite.chat.loop import Chat, Opened
from kvlite.chat.session import Session
from kvlite.chat.session_files import SessionFolder
from kvlite.console import Console
from kvlite.llm.answer import AnswerSettings
from kvlite.llm.chat_memory import ChatMemory
from kvlite.llm.saved_row import Unusable
from kvlite.record.recorder import Recorder
from tests.llm.talking import opened


def chat_with(llm, folder):
    console = Console(stdout=io.StringIO(), stderr=io.StringIO())
    session = Session(llm.engine, llm.model.text, AnswerSettings(max_tokens=6))
    display = Display(console, Recorder("chat", (), report="none"), AnswerFormat())
    talk = Opened(session, ChatMemory(llm, session.conversation), "demo", "demo")
    return Chat(talk, folder, display, opens=None, name="killed")


def killed(llm, folder, after_s, rests=False):
    """The turns that a chat in another process had finished when it was killed, one and at rest where it `rests`."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            chat = chat_with(llm, folder)
            while True:
                chat.handle("Tell me a joke")
                os.write(tells, b".")
                while rests:
                    signal.pause()
        finally:
            os._exit(1)
    os.close(tells)
    with os.fdopen(told, "rb") as pipe:
        if rests:
            pipe.read(1)
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return len(pipe.read()) + rests


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.matrix)])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # torch's threads, which the fork does not need
def test_a_kill_at_any_moment_loses_no_finished_turn(tmp_path, times):
    folder, moments, resumed = SessionFolder(tmp_path), random.Random(0), 0
    with opened("64tok") as llm:
        for number in range(times):
            turns = killed(llm, folder, moments.uniform(0.05, 0.8), rests=number == 0)
            file = folder.file("killed")
            if not file.exists():
                assert turns == 0
                continue
            messages = file.load()
            assert sum(message["role"] == "assistant" for message in messages) >= turns
            session = Session(llm.engine, llm.model.text, AnswerSettings(max_tokens=6))
            session.load(messages)
            try:
                ChatMemory(llm, session.conversation).load(file.cache_path, messages)
                resumed += 1
            except Unusable as why:
                assert "another by now" in str(why) or "not saved" in str(why)
            assert [*session.ask("Hello")]
            file.remove()
    assert resumed > 0
