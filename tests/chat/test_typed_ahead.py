import pytest

from kvlite.chat.loop import Pasted
from kvlite.chat.typed_ahead import END, TypedAhead


@pytest.fixture
def ahead():
    return TypedAhead()


def paste(text):
    return b"\x1b[200~" + text.encode() + b"\x1b[201~"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (b"hello", "hello"),
        (b"helk\x7flo", "hello"),
        (b"ello\x01h", "hello"),
        (b"hllo\x1b[D\x1b[D\x1b[De", "hello"),
        (b"gone\x15hello", "hello"),
        (b"hello gone\x17", "hello "),
        (b"hello\x1b[3~\x1b[A\x1bOP", "hello"),
        (b"a\x1b\rb", "a\nb"),
        ("é字🎉".encode(), "é字🎉"),
    ],
)
def test_keys_edit_as_at_the_prompt_byte_by_byte(ahead, keys, text):
    for byte in keys:
        ahead.feed(bytes([byte]))
    ahead.flush()
    assert ahead.text == text and not ahead.sent


def test_enter_sends_and_an_empty_line_is_none(ahead):
    ahead.feed(b"\r \rone\rtwo\r\x04thr")
    assert [*ahead.sent] == [" one", "two", END] and ahead.text == "thr"


def test_what_was_sent_can_be_taken_back_with_what_is_typed(ahead):
    ahead.feed(b"one\rtwo\r\x04three")
    ahead.unsend()
    assert ahead.text == "one\ntwo\nthree" and not ahead.sent
    ahead.feed(b"!")
    assert ahead.take() == "one\ntwo\nthree!" and ahead.text == ""


def test_what_was_pasted_is_known_until_it_is_gone(ahead):
    ahead.feed(paste('"""a\r\nb\r'))
    assert ahead.text == '"""a\nb\n' and isinstance(ahead.text, Pasted)
    ahead.feed(b"\r")
    assert isinstance(ahead.sent[0], Pasted) and not isinstance(ahead.text, Pasted)
    ahead.feed(paste("x") + b"\x7fy")
    assert not isinstance(ahead.text, Pasted)


def test_bytes_that_are_no_utf_8_do_not_stop_the_typing(ahead):
    ahead.feed(b"a\xffb\xe5")
    ahead.feed(b"\xad\x97")
    assert ahead.text.endswith("b字") and ahead.text.startswith("a")
