from pathlib import Path

import pytest

from kvlite.chat.slash_commands import COMMANDS, find
from kvlite.errors import UsageError

PAGE = (Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.names[0])
def test_the_page_of_the_chat_names_every_command(command):
    assert all(f"`/{name}" in PAGE for name in command.names) and command.argument in PAGE


def test_no_two_commands_share_a_name():
    names = [name for command in COMMANDS for name in command.names]
    assert len(names) == len(set(names))


def test_find_splits_the_argument_from_the_name():
    command, argument = find("/system  be brief ")
    assert command.names == ("system",) and argument == "be brief"


@pytest.mark.parametrize("line", ["/Help", "/help\nx", "//", "/help!"])
def test_only_the_exact_word_is_a_command(line):
    with pytest.raises(UsageError):
        find(line)
