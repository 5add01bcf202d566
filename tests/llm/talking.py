"""A conversation on the built-in model with the memory of it, for tests that look at both."""

from dataclasses import replace
from functools import cache

from kvlite.llm import LLM
from kvlite.llm.answer import Answer, AnswerSettings
from kvlite.llm.chat_memory import ChatMemory
from kvlite.llm.conversation import Conversation
from kvlite.llm.spec import RunSpec
from kvlite.options import ModelOptions

QUESTIONS = ("My name is Tom and I live in Rome.", "Tell me a joke please", "What is the capital of France?")


@cache
def loaded():
    """The built-in model, loaded once."""
    with LLM("demo") as llm:
        return llm.model


def opened(budget, policy="heavy-hitter", profile="auto"):
    """The built-in model with a cache of its own."""
    spec = RunSpec.of(ModelOptions(model="demo", kv_budget=budget, kv_policy=policy, profile=profile))
    return LLM(replace(loaded(), spec=spec))


class Talk:
    """A conversation with the memory of it."""

    def __init__(self, llm, checkpoint_bytes=10**9):
        self.llm, self.messages = llm, []
        self.conversation = Conversation(llm.engine, llm.model.text, checkpoint_bytes)
        self.conversation.forget()
        self.memory = ChatMemory(llm, self.conversation)

    def ask(self, question):
        self.messages.append({"role": "user", "content": question})
        events = [*self.conversation.ask(self.messages, AnswerSettings(max_tokens=12))]
        assert isinstance(events[-1], Answer)
        self.messages.append({"role": "assistant", "content": events[-1].text})
        return events[-1]

    @property
    def shares(self):
        return [turn.share for turn in self.memory.turns()]
