import pytest

from kvlite.chat.slash_commands import changed, listed
from kvlite.errors import UsageError
from kvlite.llm.answer import AnswerSettings


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("temperature", "0.7", 0.7),
        ("top_p", "0.9", 0.9),
        ("top-k", "40", 40),
        ("MIN_P", " 0.05 ", 0.05),
        ("repetition_penalty", "1.1", 1.1),
        ("presence_penalty", "0", 0.0),
        ("seed", "7", 7),
    ],
)
def test_a_change_reaches_the_sampling(key, value, expected):
    settings = changed(AnswerSettings(), key, value)
    assert getattr(settings.sampling, key.strip().replace("-", "_").lower()) == expected


def test_max_tokens_takes_a_count_or_none():
    settings = changed(AnswerSettings(), "max_tokens", "12")
    assert settings.max_tokens == 12 and changed(settings, "max_tokens", "none").max_tokens is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "nan"),
        ("temperature", "-1"),
        ("temperature", "hot"),
        ("top_p", "0"),
        ("top_p", "1.5"),
        ("top_k", "2.5"),
        ("top_k", "-1"),
        ("min_p", "1"),
        ("repetition_penalty", "0"),
        ("seed", "-1"),
        ("seed", ""),
        ("max_tokens", "0"),
        ("max_tokens", "many"),
        ("colour", "red"),
    ],
)
def test_a_bad_change_is_refused_and_names_the_value(key, value):
    with pytest.raises(UsageError, match=key):
        changed(AnswerSettings(), key, value)


def test_listing_names_every_setting():
    names = [name for name, _ in listed(AnswerSettings())]
    assert names[:4] == ["temperature", "top_p", "top_k", "min_p"] and names[-2:] == ["seed", "max_tokens"]
    assert names[4:7] == ["repetition_penalty", "presence_penalty", "frequency_penalty"]
