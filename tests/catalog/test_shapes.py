"""Facts that the package itself has of its aliases: a plan for each without a network."""

from __future__ import annotations

import json

import pytest

from kvlite.catalog.files import model_facts
from kvlite.catalog.names import aliases, resolve_model
from kvlite.catalog.shapes import known_model
from kvlite.cli import main
from kvlite.cli.known_models import show_first
from kvlite.console import Console
from kvlite.memory.shape import ModelShape
from tests.catalog.shapes_table import CONFIGS, DATE, FILE, table

PUBLISHED = {  # parameters, as the Hub counts them
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-30b-a3b": 30_532_122_624,
    "smollm2-135m": 134_515_008,
    "qwen2.5-72b": 72_706_203_648,
    "qwq-32b": 32_763_876_352,
    "mixtral-8x7b": 46_702_792_704,
    "gemma-2-27b": 27_227_128_320,
    "deepseek-r1-14b": 14_770_033_664,
    "phi-4": 14_659_507_200,
    "gemma-3-1b": 999_885_952,
}


def test_every_alias_is_known_and_nothing_else() -> None:
    assert set(aliases()) == set(CONFIGS) == set(json.loads(FILE.read_text("utf-8"))["models"])
    for alias, parameters in PUBLISHED.items():
        known = known_model(alias)
        assert known is not None and known.weights.parameters == parameters
    gpt_oss = known_model("gpt-oss-20b")
    assert gpt_oss is not None and gpt_oss.weights.num_bytes == 13_761_264_768
    assert known_model("org/name") is None


@pytest.mark.matrix
def test_the_file_is_what_its_table_makes() -> None:
    assert json.loads(FILE.read_text("utf-8")) == table(), "run: python -m tests.catalog.shapes_table"


@pytest.mark.parametrize("alias", CONFIGS)
def test_every_alias_is_planned_without_a_network(alias: str) -> None:
    facts = model_facts(resolve_model(alias), offline=True)
    assert (facts.as_of, facts.repo, facts.license) == (DATE, aliases()[alias].repo, aliases()[alias].licence)
    shape = facts.shape()
    assert shape.kv_bytes_per_token() > 0 and shape.dtype in ("bfloat16", "float16")
    assert shape == ModelShape.from_config(CONFIGS[alias])


def test_a_plan_says_that_the_hub_was_not_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "gpt-oss", "--offline", "--vram", "80GB"]) == 0
    out = capsys.readouterr().out
    assert f"as of                {DATE}, from kvlite's own table: the Hub was not asked\n" in out
    assert main(["plan", "gpt-oss@main", "--offline"]) == 3, "of another revision nothing is known"


def test_aliases_are_listed_with_what_runs_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvlite.llm.spec.available_bytes", lambda: 8_000_000_000)
    assert main(["ls", "--aliases", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert [*listed] == list(aliases())
    one = listed["llama-3.1-8b"]
    assert one.pop("total_bytes") < 8_000_000_000 and one.pop("tokens") > 1000
    assert one == {
        "name": "llama-3.1-8b",
        "also": ["llama3.1", "llama3.1-8b", "llama-8b"],
        "repo": "meta-llama/Llama-3.1-8B-Instruct",
        "license": "llama3.1",
        "gated": True,
        "weight_bytes": 2 * 8_030_261_248,
        "kv_bytes_per_token": 131_072,
        "as_of": DATE,
        "fits": True,
        "quant": "4bit",
    }
    assert main(["ls", "--aliases"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "RUNS", "HERE", "WEIGHTS", "KV/TOK", "LICENCE", "REPO"]
    assert len(rows) == len(aliases())
    said = {row.split()[0]: row.split()[1] for row in rows}
    assert (said["smollm2-135m"], said["llama-3.1-8b"], said["llama-3.3-70b"]) == ("yes,", "--4bit,", "no,")
    assert main(["ls", "--aliases", "-q"]) == 0
    assert capsys.readouterr().out.splitlines() == list(aliases())


@pytest.mark.parametrize("alias", ["smollm2-135m", "llama-3.1-8b", "llama-3.3-70b", "gpt-oss-20b"])
def test_what_runs_here_is_what_plan_says(
    alias: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvlite.llm.spec.available_bytes", lambda: 8_000_000_000)
    main(["ls", "--aliases", "--json"])
    listed = next(one for one in json.loads(capsys.readouterr().out) if one["name"] == alias)
    main(["plan", alias, "--offline", "--json", "--quant", listed["quant"]])
    planned = json.loads(capsys.readouterr().out)
    assert {name: listed[name] for name in ("fits", "tokens", "total_bytes")} == {
        name: planned[name] for name in ("fits", "tokens", "total_bytes")
    }


def test_a_newcomer_is_shown_what_fits_in_a_few_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvlite.llm.spec.available_bytes", lambda: 8_000_000_000)
    show_first(Console())
    head, *lines = capsys.readouterr().err.splitlines()
    names = [line.split()[2] for line in lines]
    sizes = [known.weights.num_bytes for name in names if (known := known_model(name))]
    assert head.startswith("8.00 GB are free on this machine now")
    assert names[0] == "smollm2-135m" and 3 <= len(names) == len(sizes) <= 5
    assert sizes == sorted(sizes) and sizes[-1] < 8_000_000_000
    assert not any(aliases()[name].gated for name in names)
