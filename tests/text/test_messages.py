from __future__ import annotations

import pytest

from kvlite.errors import UsageError
from kvlite.text.messages import Message, checked, with_system_folded


def test_text_parts_are_joined_and_developer_means_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]
    assert checked(messages) == [Message("system", "s", 1), Message("user", "ab")]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "no messages"),
        (["hi"], "message 1 is str"),
        ([{"role": "user", "content": "a"}, None], "message 2 is NoneType"),
        ([{"content": "a"}], "role None"),
        ([{"role": "robot", "content": "a"}], "role 'robot'"),
        ([{"role": ["user"], "content": "a"}], r"role \['user'\]"),
        ([{"role": "tool", "content": "a"}], "role 'tool'"),
        ([{"role": "user"}], "content None"),
        ([{"role": "user", "content": 3}], "content 3"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "'image_url'"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "'text'"),
        ([{"role": "user", "content": ["a"]}], "'str'"),
    ],
)
def test_malformed_messages_are_refused_by_number(messages, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        checked(messages)
    assert "\n" not in str(caught.value)


def test_a_system_prompt_is_folded_into_the_next_user_message():
    messages = checked([{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "system")])
    assert with_system_folded(messages) == [
        Message("user", "s\n\nu", 1),
        Message("assistant", "a"),
        Message("user", "s"),
    ]
