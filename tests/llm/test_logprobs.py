"""Log probabilities and least lengths of the built-in model's answers, from Python and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvlite import LLM, FinishReason, UsageError
from kvlite.cli import main
from kvlite.llm.logprobs import TokenLogprob

PROMPTS = ["Hello! What is your name?", "What can you do?"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", kv_budget="2MB", kv_per_seq="128tok") as llm:
        yield llm


def test_each_token_of_an_answer_has_one(llm: LLM) -> None:
    plain = llm.generate(PROMPTS, greedy=True, max_tokens=20)
    for answer, before in zip(llm.generate(PROMPTS, greedy=True, max_tokens=20, logprobs=3), plain, strict=True):
        assert (answer.text, before.logprobs) == (before.text, None)
        assert answer.logprobs is not None and len(answer.logprobs) == answer.completion_tokens
        assert "".join(one.token for one in answer.logprobs).strip() == answer.text.strip()
        for one in answer.logprobs:
            assert [other.logprob for other in one.top] == sorted((o.logprob for o in one.top), reverse=True)
            assert len(one.top) == 3 and (one.top[0].bytes, one.top[0].logprob) == (one.bytes, one.logprob)
    (drawn,) = llm.generate(["Hi"], temperature=2.0, seed=1, max_tokens=5, logprobs=0)
    assert drawn.logprobs is not None and all(one.top == () and one.logprob < 0 for one in drawn.logprobs)
    assert llm.chat("Hi", max_tokens=3, logprobs=1).logprobs


def test_parts_of_characters_are_written_as_bytes() -> None:
    assert TokenLogprob(b"\xe2\x80", -1.0).token == r"bytes:\xe2\x80"


def test_no_answer_ends_before_its_least_tokens(llm: LLM) -> None:
    (short,) = llm.generate(PROMPTS[:1], greedy=True, stop=" ")
    assert short.finish_reason is FinishReason.STOP
    (longer,) = llm.generate(PROMPTS[:1], greedy=True, stop=" ", min_tokens=30, max_tokens=60)
    assert longer.completion_tokens >= 30 and " " in longer.text and longer.text.startswith(short.text)
    (unended,) = llm.generate(PROMPTS[:1], greedy=True, min_tokens=60, max_tokens=60)
    assert (unended.completion_tokens, unended.finish_reason) == (60, FinishReason.LENGTH)


def test_biases_of_tokens_reach_the_draw(llm: LLM) -> None:
    prompt = PROMPTS[:1]
    (plain,) = llm.generate(prompt, greedy=True, max_tokens=4)
    first = plain.completion.ids[0]
    (without,) = llm.generate(prompt, greedy=True, max_tokens=4, logit_bias={first: -100}, logprobs=1)
    assert without.completion.ids[0] != first and without.logprobs is not None
    assert without.logprobs[0].top[0].logprob > without.logprobs[0].logprob  # the model's own stay as they are
    (again,) = llm.generate(prompt, greedy=True, max_tokens=4, logit_bias=f"{first}=-100")
    assert again.text == without.text


def test_what_cannot_be_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("Hi\n")
    batch = ["batch", str(tmp_path / "in.txt"), "-m", "demo", "-o", str(tmp_path / "out"), "--out-format", "text"]
    for words, reason in (
        (["run", "-m", "demo", "Hi", "--logprobs", "2"], "--json"),
        ([*batch, "--logprobs", "2"], "text"),
        (["run", "-m", "demo", "Hi", "--min-tokens", "9", "--max-tokens", "8"], "min_tokens is 9"),
        (["run", "-m", "demo", "Hi", "--logit-bias", "cat=5"], "'cat=5' is no bias"),
        (["run", "-m", "demo", "Hi", "--logit-bias", "5=101"], "-100 to 100"),
    ):
        assert main(words) == 2
        assert reason in capsys.readouterr().err
    with LLM("demo", kv_budget="300kB") as llm, pytest.raises(UsageError, match="21"):
        llm.chat("Hi", logprobs=21)


def test_run_prints_them_as_openai_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["--json", "run", "-m", "demo", "Hello!", "--logprobs", "2", "--max-tokens", "4", "--greedy"]) == 0
    (choice,) = json.loads(capsys.readouterr().out)["choices"]
    content = choice["logprobs"]["content"]
    assert [len(one["top_logprobs"]) for one in content] == [2] * len(content)
    assert content[0].keys() == {"token", "logprob", "bytes", "top_logprobs"}


def test_run_holds_stop_strings_back_until_the_least_tokens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    words = ["run", "-m", "demo", "Hello! What is your name?", "--greedy", "--stop", " "]
    assert main(words) == 0 and " " not in capsys.readouterr().out
    assert main([*words, "--min-tokens", "6"]) == 0 and " " in capsys.readouterr().out
