"""Roles: the settings of a file count as if they stood before those of the user's settings."""

import sys

import pytest

from kvlite.chat.roles import role_folder
from kvlite.cli import main


@pytest.fixture(autouse=True)
def nothing_on_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)


@pytest.fixture
def role():
    """Writes a role."""

    def role(name, text):
        role_folder().mkdir(parents=True, exist_ok=True)
        (role_folder() / f"{name}.toml").write_text(text, encoding="utf-8")

    return role


def answer(capfd, *args):
    """Runs kvlite and gives back exit code, stdout and stderr."""
    code = main([*args])
    out, err = capfd.readouterr()
    assert code or out, err
    return code, out, err


def test_its_settings_count_and_a_flag_counts_more(role, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kvlite.toml").write_text("max-tokens = 5\n")
    role("short", "max-tokens = 1\n")
    long = answer(capfd, "run", "demo", "Hello", "-q")[1]
    assert long.startswith(one := answer(capfd, "run", "demo", "Hello", "-q", "--role", "short")[1].strip())
    assert len(one) < len(long.strip())
    assert answer(capfd, "run", "demo", "Hello", "-q", "--role", "short", "-n", "5")[1] == long


def test_its_system_prompt_and_its_model_are_taken(role, capfd):
    role("told", 'model = "demo"\nsystem = "My name is Tom."\n')
    by_hand = answer(capfd, "run", "demo", "Hello", "-q", "-n", "12", "--system", "My name is Tom.")
    assert by_hand[0] == 0 and by_hand[1].strip()
    assert answer(capfd, "run", "--role", "told", "Hello", "-q", "-n", "12") == by_hand


def test_sampling_of_a_role_ends_greedy_of_a_file(role, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kvlite.toml").write_text("greedy = true\n")
    role("wild", "temperature = 3.0\nseed = 1\n")
    same = answer(capfd, "run", "demo", "Hello", "-q", "-n", "8")[1]
    assert answer(capfd, "run", "demo", "Hello", "-q", "-n", "8", "--role", "wild")[1] != same


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max-tokens = ", "is not valid TOML"),
        ('max-tokens = "many"', "role bad: max-tokens"),
        ("colour = 1", "role bad: "),
        ("model = 3", "role bad: model is 3"),
    ],
)
def test_what_is_wrong_in_a_role_is_told_in_a_line(role, capfd, text, why):
    role("bad", text)
    code, out, err = answer(capfd, "run", "demo", "Hello", "--role", "bad")
    assert code == 2 and not out and why in err and err.count("\n") == 1


def test_an_unknown_role_is_told_with_those_there_are(role, capfd):
    assert "no role is called 'x'; " in answer(capfd, "run", "demo", "Hello", "--role", "x")[2]
    role("french", 'system = "French."')
    code, _, err = answer(capfd, "run", "demo", "Hello", "--role", "../config")
    assert code == 2 and "there are french" in err
