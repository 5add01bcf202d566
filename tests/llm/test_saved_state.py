"""A row of a hybrid in a file: its constant state is saved, put back, and left alone by a check."""

from types import SimpleNamespace

import pytest

from kvlite.engine.recheck import full_engine, redrawn
from kvlite.engine.request import Request
from kvlite.llm.answer import Answer
from kvlite.llm.saved_row import load_row, save_row
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine

FIRST, SECOND = tuple(range(3, 40)), tuple(range(50, 60))
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def around(engine):
    """An LLM and its conversation, as far as a saved row looks at them."""
    files, text = SimpleNamespace(identity=lambda: "tiny"), SimpleNamespace(template="")
    spec = SimpleNamespace(options=SimpleNamespace(adapter=None))
    llm = SimpleNamespace(engine=engine, model=SimpleNamespace(files=files, text=text, loaded=engine.loaded, spec=spec))
    conversation = SimpleNamespace(starts=[0], pinned=set(), holds=lambda messages: True, resumed=None)
    conversation.resume = lambda *row: setattr(conversation, "resumed", row)
    return llm, conversation


@pytest.mark.parametrize("family", ["granitemoehybrid", "llama"])
def test_the_row_goes_on_with_the_same_tokens(family, tmp_path):
    engine = make_engine(admitted(tiny_model(family, SUPPORTED[family])), "30tok")
    request = Request("a", FIRST, max_tokens=8, row=0)
    done = answers(engine, [request])["a"]
    llm, conversation = around(engine)
    conversation.last = Answer("b", "", done.finish_reason, 0, False, False, done)
    path = tmp_path / "a.kv.safetensors"
    assert save_row(path, llm, conversation, MESSAGES)
    expected = answers(engine, [Request("b", SECOND, max_tokens=8, row=0)])["b"].ids
    engine.rows.reset(0)
    answers(engine, [Request("c", (5, 6, 7), max_tokens=3, row=0)])
    load_row(path, llm, conversation, MESSAGES)
    said = [*engine.rows.said(0)]
    assert conversation.resumed[1].text == "b" and said == [*FIRST, *done.ids]
    redrawn(engine, full_engine(engine, len(said)), said, len(done.ids), request)
    assert answers(engine, [Request("b", SECOND, max_tokens=8, row=0)])["b"].ids == expected
