"""`kvlite config`: what is set, where, and an editor for it."""

import json
from pathlib import Path

import pytest
from platformdirs import user_config_path

from kvlite.cli import main


@pytest.fixture
def config(capfd, tmp_path, monkeypatch):
    """Runs `kvlite config` in an empty folder and gives back exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def config(*args):
        code = main(["config", *args])
        return (code, *capfd.readouterr())

    return config


def test_the_path_is_printed_whether_there_is_a_file_or_not(config):
    assert config("path")[:2] == (0, f"{user_config_path('kvlite') / 'config.toml'}\n")


def test_files_and_variables_are_shown_as_they_are(config, tmp_path, monkeypatch):
    assert "no settings" in config()[2]
    (tmp_path / "kvlite.toml").write_text('kv-budget = "1GB"\n')
    monkeypatch.setenv("KVLITE_KV_POLICY", "window")
    assert config("show")[1] == '# kvlite.toml\nkv-budget = "1GB"\nKVLITE_KV_POLICY=window\n'
    shown = json.loads(config("--json")[1])
    assert shown == {"files": {"kvlite.toml": 'kv-budget = "1GB"\n'}, "variables": {"KVLITE_KV_POLICY": "window"}}


def test_the_editor_gets_a_file_that_kvlite_reads(config, monkeypatch):
    monkeypatch.setenv("EDITOR", "sed -i s/^#.kv-budget/kv-budget/")
    assert config("edit")[0] == 0
    assert 'kv-budget = "2GB"' in Path(config("path")[1].strip()).read_text().splitlines()
    assert config("show")[0] == 0


@pytest.mark.parametrize(
    ("editor", "why"), [("no-such-editor", "set EDITOR"), ("false", "ended with 1"), ("'", "EDITOR")]
)
def test_an_editor_that_fails_is_told(config, monkeypatch, editor, why):
    monkeypatch.setenv("EDITOR", editor)
    code, _, err = config("edit")
    assert code == 2 and why in err


def test_another_word_is_refused(config):
    assert config("list")[0] == 2
