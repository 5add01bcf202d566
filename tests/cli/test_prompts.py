import io
import sys

import pytest

from kvlite.catalog.names import aliases
from kvlite.cli.prompts import build_prompt, looks_like_model, split_words
from kvlite.console import Console
from kvlite.errors import ModelNotFound, UsageError


@pytest.fixture
def console():
    return Console(stdout=io.StringIO(), stderr=io.StringIO())


@pytest.fixture
def pipe(monkeypatch):
    """Puts bytes on stdin."""

    def put(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    put(b"")
    return put


@pytest.fixture
def at_terminal(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(b"typed\n")))


@pytest.mark.parametrize(
    ("words", "model", "expected"),
    [
        (["demo", "hi", "you"], None, ("demo", ["hi", "you"])),
        (["org/name@main", "hi"], None, ("org/name@main", ["hi"])),
        (["demo", "hi"], "qwen2.5-0.5b", ("qwen2.5-0.5b", ["demo", "hi"])),
        ([], None, ("fallback", [])),
        ([], "demo", ("demo", [])),
        (["Say hello to Ann/Bob"], None, ("fallback", ["Say hello to Ann/Bob"])),
        (["write", "a", "poem"], None, ("fallback", ["write", "a", "poem"])),
        (["-"], None, ("fallback", ["-"])),
    ],
)
def test_the_first_word_is_the_model_unless_m_names_it(console, words, model, expected):
    assert split_words(words, model, "fallback", console) == expected


def test_a_miss_is_said(console):
    split_words(["write", "a", "poem"], None, "demo", console)
    assert "'write' is no model and all words are the prompt: demo answers" in console.stderr.getvalue()


def test_a_miss_that_the_built_in_model_answers_names_a_real_one(console):
    split_words(["write", "a", "poem"], None, "demo", console)
    said = console.stderr.getvalue()
    assert said.count("\n") == 1
    assert said.split()[-1].strip("`") in aliases()


@pytest.mark.parametrize("words", [["demmo", "hi"], ["qwen9-7b"], ["./nowhere", "hi"], ["a/b/c"], ["hello", "demo"]])
def test_a_word_that_looks_like_a_model_is_never_taken_for_a_prompt(console, words):
    with pytest.raises(ModelNotFound):
        split_words(words, None, "demo", console)


@pytest.mark.parametrize("word", ["", "hello", "Hello there", "what?", "3.14", "2-3", "top-10", "e.g.", "24-bit"])
def test_plain_words_do_not_look_like_models(word):
    assert not looks_like_model(word)


@pytest.mark.parametrize(
    "word", ["org/name", "llama-9b", "phi:3b", "Qwen2.5-0.5B-Instruct", "/models/x", "hf://a/b", "dmo"]
)
def test_names_and_paths_look_like_models(word):
    assert looks_like_model(word)


def test_stdin_comes_first_then_files_then_words(pipe, tmp_path):
    pipe("piped ☺\n\n".encode())
    (tmp_path / "a").write_text("one\n")
    (tmp_path / "b").write_text("two\n")
    assert build_prompt(["say", "it"], [tmp_path / "a", tmp_path / "b"]) == "piped ☺\n\none\n\ntwo\n\nsay it"


def test_a_dash_is_stdin(pipe):
    pipe(b"piped\n")
    assert build_prompt(["-"], []) == "piped"


def test_a_terminal_is_read_only_when_asked_for(at_terminal):
    assert build_prompt(["hi"], []) == "hi"
    assert build_prompt(["-"], []) == "typed"


@pytest.mark.parametrize("stdin", [None, io.StringIO])
def test_a_closed_stdin_is_nothing(monkeypatch, stdin):
    stream = stdin and stdin()
    if stream:
        stream.close()
    monkeypatch.setattr(sys, "stdin", stream)
    assert build_prompt(["hi"], []) == "hi"


@pytest.mark.parametrize(
    ("data", "words", "message"),
    [
        (b"", [], "prompt is empty"),
        (b" \n", ["  "], "prompt is empty"),
        (b"", ["-"], "prompt is empty"),
        (b"ab\xff", [], "byte 0xff at offset 2"),
        (b"\xef\xbb\xbfab\xff", [], "offset 5"),
        (b"caf\xe9", ["hi"], "stdin is not UTF-8"),
    ],
)
def test_prompts_that_cannot_be_built_are_refused(pipe, data, words, message):
    pipe(data)
    with pytest.raises(UsageError, match=message):
        build_prompt(words, [])


def test_a_byte_order_mark_is_no_text(pipe):
    pipe(b"\xef\xbb\xbfhi")
    assert build_prompt([], []) == "hi"


def test_files_that_cannot_be_read_are_named(pipe, tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for path, message in [
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "latin", "offset 3"),
    ]:
        with pytest.raises(UsageError, match=message):
            build_prompt([], [path])


@pytest.mark.parametrize(
    "word", ["gpt-oss-x", "gptoss-x", "llama9", "deepseek", "qwen9.9", "falcon9", "granite-9", "kimi-k2"]
)
def test_an_unknown_member_of_a_known_family_is_no_prompt(console, word):
    with pytest.raises(ModelNotFound, match=f"^no model is called '{word}'; (did you mean |use an alias)"):
        split_words([word, "hi"], None, "demo", console)


@pytest.mark.parametrize(
    "words", [["falcon", "facts"], ["seed", "oils"], ["what", "is", "llama", "4"], ["cohere", "means"]]
)
def test_words_of_english_are_a_prompt_though_models_are_called_so(console, words):
    assert split_words(words, None, "demo", console) == ("demo", words)
