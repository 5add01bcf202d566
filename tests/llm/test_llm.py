"""The door from Python: what the commands say, the same answers, typed errors, and memory given back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from kvlite import LLM, BudgetTooSmall, FinishReason, KvliteError, ModelNotFound, UsageError
from kvlite.catalog.names import demo_folder
from kvlite.llm.answer import TextStream
from tests.scripted import chain, write_scripted

PROMPTS = ["Hello! What is your name?", "What can you do?", "Tell me a joke", "My name is Tom."]
TOM = {"role": "user", "content": "My name is Tom."}
WHO = {"role": "user", "content": "What is my name?"}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """The built-in model; a budget of several rows."""
    with LLM("demo", kv_budget="2MB", kv_per_seq="128tok") as llm:
        yield llm


def test_prompts_are_answered_in_order_several_at_once(llm: LLM) -> None:
    answers = llm.generate(PROMPTS, max_tokens=24, greedy=True)
    assert llm.plan.rows > 1
    alone = [llm.generate(prompt, max_tokens=24, greedy=True)[0].text for prompt in PROMPTS]
    assert [answer.text for answer in answers] == alone
    assert "demonstration model" in alone[0]


def test_an_answer_says_how_it_went(llm: LLM) -> None:
    (answer,) = llm.generate(["Hello"], max_tokens=3, temperature=0.5, seed=7)
    assert (answer.finish_reason, answer.completion_tokens, answer.seed) == (FinishReason.LENGTH, 3, 7)
    assert answer.prompt_tokens > 0
    assert answer.kv.tokens_seen >= answer.prompt_tokens + 2
    (stopped,) = llm.generate(["Hello! What is your name?"], greedy=True, stop="demonstration")
    assert stopped.finish_reason == "stop" and "demonstration" not in stopped.text


def test_the_same_seed_gives_the_same_answers(llm: LLM) -> None:
    drawn = [[a.text for a in llm.generate(PROMPTS, max_tokens=16, temperature=1.5, seed=s)] for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_raw_text_is_continued_and_a_system_prompt_comes_first(llm: LLM) -> None:
    templated, raw, under = (
        llm.generate(["Hello"], max_tokens=1, **how)[0].prompt_tokens  # type: ignore[arg-type]
        for how in ({}, {"raw": True}, {"system": "Be brief."})
    )
    assert raw < templated < under
    with pytest.raises(UsageError, match="raw contradicts system"):
        llm.generate(["Hello"], raw=True, system="Be brief.")


def test_an_answer_that_was_begun_is_gone_on_with_and_is_one_message(tmp_path: Path) -> None:
    write_scripted(tmp_path, chain("go", "red", "green", "blue") | {"now": ["blue"], ":": ["now"]})
    with LLM(tmp_path, kv_budget="256tok", fuse=False) as llm:
        begun = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "red"}]
        assert llm.chat(begun).text == "green blue"
        seen = llm.counts().tokens_seen
        goes_on = [begun[0], {"role": "assistant", "content": "redgreen blue"}, {"role": "user", "content": "go"}]
        assert llm.chat(goes_on).text == "now blue"
        assert llm.counts().tokens_seen == seen + 7  # user : go assistant : now blue; the template ends no turn
        assert [answer.text for answer in llm.generate([begun, begun[:1]])] == ["green blue", "now blue"]


def test_a_conversation_that_goes_on_feeds_only_what_is_new(llm: LLM) -> None:
    first = llm.chat([TOM], greedy=True)
    messages = [TOM, {"role": "assistant", "content": first.text}, WHO]
    second = llm.chat(messages, greedy=True)
    assert "Tom" in second.text
    seen = first.prompt_tokens + first.completion_tokens + second.prompt_tokens + second.completion_tokens
    assert llm.counts().tokens_seen in (seen - 1, seen)  # the last token is fed with what follows
    anew = llm.chat([TOM, {"role": "assistant", "content": "Hello, Thomas!"}, WHO], greedy=True)
    assert anew.prompt_tokens > second.prompt_tokens
    assert llm.counts().tokens_seen < seen + anew.prompt_tokens


def test_fed_alone_or_as_a_whole_a_conversation_is_the_same(llm: LLM) -> None:
    first = llm.chat([TOM], greedy=True)
    messages = [TOM, {"role": "assistant", "content": first.text}, WHO]
    goes_on = llm.chat(messages, greedy=True)
    llm.chat("Hello", greedy=True)  # another conversation in between
    assert llm.chat(messages, greedy=True).text == goes_on.text


def test_pieces_of_a_stream_are_the_answer(llm: LLM) -> None:
    stream = llm.stream([TOM], greedy=True)
    assert stream.answer is None
    pieces = list(stream)
    assert len(pieces) > 1
    assert stream.answer is not None
    assert "".join(pieces) == stream.answer.text == llm.chat([TOM], greedy=True).text


def test_a_stream_that_nobody_reads_to_its_end_leaves_the_next_call_alone(llm: LLM) -> None:
    expected = llm.chat([TOM], greedy=True).text
    next(llm.stream([WHO], greedy=True))
    assert llm.chat([TOM], greedy=True).text == expected
    with closing(llm.stream([WHO], greedy=True)) as stream:
        next(stream)
    assert llm.chat([TOM], greedy=True).text == expected


@pytest.mark.parametrize("is_begun", [True, False])
@pytest.mark.parametrize(
    ("give_up", "message"),
    [
        (lambda llm, stream: llm.chat("Hello", max_tokens=1), "another call took the model"),
        (lambda llm, stream: llm.generate("Hello", max_tokens=1), "another call took the model"),
        (lambda llm, stream: llm.stream("Hello"), "another call took the model"),
        (lambda llm, stream: llm.close(), "this LLM is closed"),
        (lambda llm, stream: stream.close(), "this stream was closed"),
    ],
)
def test_a_stream_that_was_given_up_does_not_end_as_if_it_were_complete(
    give_up: Callable[[LLM, TextStream], object], message: str, is_begun: bool
) -> None:
    with LLM("demo", kv_budget="300kB") as llm:
        stream = llm.stream([TOM], greedy=True)
        if is_begun:
            next(stream)
        give_up(llm, stream)
        for _ in range(2):
            with pytest.raises(UsageError, match=message):
                "".join(stream)
        assert stream.answer is None


def test_a_stream_that_was_read_to_its_end_stays_so(llm: LLM) -> None:
    stream = llm.stream([TOM], max_tokens=2)
    list(stream)
    llm.chat("Hello", max_tokens=1)
    assert list(stream) == [] and stream.answer is not None


def test_another_thread_is_told_that_there_is_one_call_at_a_time(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[BaseException] = []
    stream = llm.stream([TOM], max_tokens=3)

    def call_meanwhile() -> None:
        for use in (lambda: llm.generate("Hello"), lambda: llm.chat("Hello"), lambda: next(stream), llm.close):
            try:
                use()
            except UsageError as error:
                refused.append(error)

    def in_another_thread(*_: object) -> None:
        thread = Thread(target=call_meanwhile)
        thread.start()
        thread.join()

    pieces = stream._events
    monkeypatch.setattr(stream, "_events", (in_another_thread() or piece for piece in pieces))  # type: ignore[func-returns-value]
    assert next(stream)
    assert [str(error) for error in refused] == [
        "another thread is being answered; this LLM takes one call at a time"
    ] * 4
    assert llm.chat("Hello", max_tokens=1).completion_tokens == 1


def test_a_chat_has_the_whole_budget_and_a_batch_shares_it(llm: LLM) -> None:
    llm.chat("Hello", max_tokens=1)
    chat = llm.plan
    needed = max(answer.prompt_tokens for answer in llm.generate(["Hello"] * 3, max_tokens=1)) + 1
    batch = llm.plan
    assert (chat.rows, batch.rows, batch.slots) == (1, 3, needed)
    llm.generate(["Hello"], max_tokens=1000)
    assert (llm.plan.rows, llm.plan.slots) == (1, 128)
    assert chat.slots > batch.slots
    assert max(chat.reserved_bytes, batch.reserved_bytes) <= 2_000_000 == llm.counts().budget_bytes


def test_the_cache_before_is_gone_when_another_is_made() -> None:
    with LLM("demo", kv_budget="1MB", batch_size=2) as llm:
        assert llm.plan.rows <= 2
        llm.chat("Hello", max_tokens=1)
        next(llm.stream("Hello"))
        before = weakref.ref(llm.engine.cache)
        llm.generate(["Hello"], max_tokens=1)
        gc.collect()
        assert before() is None


def test_closing_frees_the_weights_and_says_so() -> None:
    llm, other = LLM("demo", kv_budget="300kB"), LLM("demo", kv_budget="400kB", kv_policy="window")
    weights, answer = weakref.ref(llm.model.loaded.model), llm.chat("Hello", greedy=True).text
    assert other.chat("Hello", greedy=True).text == answer
    llm.close()
    assert weights() is None
    for use in (lambda: llm.chat("Hello"), lambda: llm.generate(["Hello"]), llm.counts, lambda: llm.plan):
        with pytest.raises(UsageError, match="closed"):
            use()
    with pytest.raises(UsageError, match="closed"), llm:
        pass
    assert other.counts().policy == "window"
    other.close()


def test_nothing_is_printed_and_who_wants_to_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    with LLM("demo", kv_budget="200kB", kv_dtype="int4") as llm:
        llm.generate(["Hello"], max_tokens=2)
    with LLM("demo", kv_budget="200kB", say=told.append) as llm:
        assert "demo · float32 · KV 200 kB" in str(llm)
    assert capfd.readouterr() == ("", "")
    assert all(isinstance(text, str) for text in told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_budgett": "1GB"}, "there is no option 'kv_budgett'; did you mean kv_budget?"),
        ({"colour": "red"}, "there is no option 'colour'; there are .*kv_policy"),
        ({"kv_budget": 10**9}, "kv_budget is 1000000000; it should be a valid string"),
        ({"fuse": "yes"}, "fuse is 'yes'; it should be a valid boolean"),
        ({"prefill_chunk": True}, "prefill_chunk is True; it should be a valid integer"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0; give at least 1"),
        ({"on_full": "wait"}, "on_full is 'wait'; it should be 'evict', 'stop' or 'error'"),
        ({"say": 3}, "say is 3; give a function"),
        ({"batch_size": 0}, "'0' is no batch size; give auto or a number from 1 to 65536"),
        ({"speculate": "many"}, "speculate: 'many' is no number of tokens; give auto, off or a number from 1 to 64"),
        ({"quant": "5bit"}, "quant is '5bit'; it should be 'none', '8bit'"),
    ],
)
def test_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        LLM("demo", **options)


def test_a_model_may_be_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo_folder()
    monkeypatch.chdir(folder.parent.parent)
    for path in (folder, Path(folder.parent.name, folder.name)):  # the second would be a repository's name
        with LLM(path, kv_budget="300kB") as llm:
            assert llm.model.files.folder == folder
    with pytest.raises(ModelNotFound, match=r"there is no folder '.*/org/name'"):
        LLM(Path("org/name"))


@pytest.mark.parametrize("model", [None, 3, b"demo", ["demo"]])
def test_a_model_that_has_no_name_is_refused(model: Any) -> None:
    for options in ({}, {"kv_budget": "1MB"}):
        with pytest.raises(UsageError, match=r"model is .*; it should be a valid string"):
            LLM(model, **options)


def test_a_batch_size_may_be_a_word() -> None:
    with LLM("demo", kv_budget="2MB", kv_per_seq="128tok", batch_size="4") as llm:  # type: ignore[arg-type]
        assert llm.plan.rows == 4
        assert len(llm.generate(["Hello"] * 5, max_tokens=1)) == 5


def test_rows_that_the_budget_does_not_hold_are_refused_at_once() -> None:
    with pytest.raises(BudgetTooSmall, match="give a smaller --kv-per-seq"):
        LLM("demo", kv_budget="500kB", kv_per_seq="1MB")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temprature": 1.0}, "did you mean temperature"),
        ({"temperature": "hot"}, "temperature is 'hot'; it should be a valid number"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"max_tokens": 0}, "max_tokens is 0; give at least 1"),
        ({"stop": [".", ""]}, "an empty stop string"),
        ({"stop": [1]}, r"stop is \(1,\); it should be a valid string"),
        ({"stop": 5}, "stop is 5; it should be a valid tuple"),
        ({"system": "Be brief."}, "there is no option 'system'"),
    ],
)
def test_answers_settings_are_refused_by_name(llm: LLM, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llm.chat("Hello", **how)


def test_messages_that_are_none_are_refused(llm: LLM) -> None:
    with pytest.raises(UsageError, match=r"prompt 1: {.*} is neither text nor a list of messages"):
        llm.generate([TOM])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="message 1 has role 'nobody'"):
        llm.chat([{"role": "nobody", "content": "Hello"}])
    assert len(llm.generate([[TOM], "Hello"], max_tokens=1)) == 2


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts: None is neither text nor a list of prompts"),
        (3, "prompts: 3 is"),
        (b"hi", "prompts: b'hi' is"),
        (TOM, "prompts: {'role': 'user', 'content': 'My name is Tom.'} is"),
        (["Hello!", 5], "prompt 2: 5 is neither text nor a list of messages"),
        ([b"hi"], "prompt 1: b'hi' is"),
        ("a\udc80", r"the prompt has '\\udc80', half a surrogate pair"),
    ],
)
def test_prompts_that_are_none_are_refused(llm: LLM, prompts: Any, message: str) -> None:
    for raw in (False, True) if isinstance(prompts, str) else (False,):
        with pytest.raises(UsageError, match=message):
            llm.generate(prompts, raw=raw)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages: None is neither text nor a list of messages"),
        (3, "messages: 3 is"),
        (TOM, "messages: {'role'"),
        ("\udc80", "half a surrogate pair"),
        ([{"role": "user", "content": "\ud800"}], "half a surrogate pair"),
    ],
)
def test_what_is_no_conversation_is_refused(llm: LLM, messages: Any, message: str) -> None:
    for call in (llm.chat, llm.stream):
        with pytest.raises(UsageError, match=message):
            call(messages)
    assert llm.chat("Hello", max_tokens=1).completion_tokens == 1


def test_errors_are_typed() -> None:
    with pytest.raises(ModelNotFound, match="no model is called"):
        LLM("no-such-model")
    with pytest.raises(BudgetTooSmall, match="the smallest that works"):
        LLM("demo", kv_budget="1kB")
    with (
        LLM("demo", kv_budget="40tok", on_full="error") as llm,
        pytest.raises(KvliteError, match="slots"),
    ):
        llm.chat("word " * 100)
