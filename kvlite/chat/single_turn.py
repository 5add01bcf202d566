"""Answer one prompt and print the answer: `run`, and `chat` without a terminal."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from kvlite.chat.display import Display, answer_line
from kvlite.chat.interrupt import Interrupts
from kvlite.deadline import Deadline
from kvlite.errors import Interrupted
from kvlite.llm import openai
from kvlite.llm.answer import Answer, AnswerSettings, stream_answer
from kvlite.llm.conversation import ROW

if TYPE_CHECKING:
    from kvlite.llm import LLM
    from kvlite.text.template import Encoded

# The first fenced code block, which may lack its end.
_CODE_BLOCK = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)|\Z)", re.M | re.S)


def answer_prompt(llm: LLM, encoded: Encoded, settings: AnswerSettings, display: Display, deadline: Deadline) -> None:
    """Answer one prompt and print it. Raises Interrupted or TimeLimit after the incomplete answer was printed."""
    engine, text = llm.engine, llm.model.text
    request = settings.request(f"chatcmpl-{uuid.uuid4().hex}", encoded, text, row=ROW)
    interrupts = Interrupts()

    def cancel() -> None:
        engine.cancel(request.id)

    events = stream_answer(engine, request, text.answer(encoded, stop=settings.stop))
    with deadline.calling(cancel):
        answer = display.show(events, interrupts, cancel)
    _print(answer, llm.model.name, display)
    if interrupts.pressed:
        raise Interrupted("interrupted; the answer is incomplete")
    deadline.check()


def _print(answer: Answer, model: str, display: Display) -> None:
    form, console = display.form, display.console
    if form.as_json:
        usage = openai.usage(answer.prompt_tokens, answer.completion_tokens)
        choices, counted = [openai.choice(answer)], openai.counted(answer)
        console.json(openai.completion(answer.completion.request_id, model, choices, usage, counted))
    elif not form.streams:
        block = _CODE_BLOCK.search(answer.text) if form.extracts else None
        if form.extracts and block is None:
            console.warn("the answer has no code block; this is all of it")
        text = answer.text if block is None else block["code"]
        console.answer(text if text.endswith("\n") else f"{text}\n")
    if form.shows_time:
        console.aside(f"{answer_line(answer)}\n")
    display.tell(answer)
