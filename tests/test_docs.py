"""What is written about the program is what the program says."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer.main

from kvlite.cache.policy import DEFAULT_POLICY, load_policy, policy_names
from kvlite.cache.policy_text import write_settings
from kvlite.cli import app
from kvlite.cli.commands import CommandGroup
from kvlite.memory.budget import Budget
from kvlite.memory.fit import Fit
from kvlite.memory.format import human_bytes, slot_format
from kvlite.memory.plan import CachePlan, CacheSpec, plan_cache
from kvlite.memory.shape import ModelShape

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "tools").rglob("*.md")]


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "write_cli.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page, "run: python docs/write_cli.py"


def test_links_inside_the_repository_lead_somewhere() -> None:
    links = [
        (page.name, link)
        for page in PAGES
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert links == []


def commands_in(page: Path) -> list[list[str]]:
    """The calls of kvlite in the code blocks and code spans of a page, as words."""
    text = page.read_text(encoding="utf-8")
    code = [*re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M), *re.findall(r"`(kvlite [^`\n]+)`", text)]
    lines = [line.strip() for block in code for line in block.splitlines()]
    calls = [part.strip() for line in lines for part in re.split(r"[|>]", line) if part.strip().startswith("kvlite ")]
    return [shlex.split(call, comments=True) for call in calls]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_in_the_examples_exists(page: Path) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, CommandGroup)
    known = {opt for param in group.params for opt in param.opts} | {"--help", "-h"}
    wrong = []
    for _, *words in commands_in(page):
        name = next((word for word in words if not word.startswith("-")), None)
        allowed = set(known)
        if name is not None and re.fullmatch(r"[a-z]+", name):
            if name not in group.commands:
                wrong.append(f"no command {name}")
                continue
            allowed |= {opt for param in group.load(name).params for opt in (*param.opts, *param.secondary_opts)}
        wrong += [f"{name} has no {word}" for word in words if re.match(r"--?[a-z4]", word) and word not in allowed]
    assert wrong == []


def test_the_readme_has_examples() -> None:
    assert len(commands_in(ROOT / "README.md")) >= 8


def readme_table() -> list[tuple[str, str, str, str, str, str]]:
    rows = re.findall(
        r"^\| ([\w.-]+) \| ([\d,]+) B in (\w+) \| ([\d,]+)[^|]* \| ([\d,]+) \| ([\d.]+ \w+) \|$",
        (ROOT / "README.md").read_text(),
        re.M,
    )
    assert len(rows) == 3
    return rows


@pytest.mark.parametrize(("model", "per_token", "stored", "tokens", "own", "unbounded"), readme_table())
def test_what_the_readme_says_a_gigabyte_holds(
    model: str, per_token: str, stored: str, tokens: str, own: str, unbounded: str
) -> None:
    config = json.loads((ROOT / "tests" / "data" / "configs" / f"{model}.json").read_text())
    shape, budget = ModelShape.from_config(config), Budget.parse("1GB")
    policy = load_policy(DEFAULT_POLICY)
    spec = policy.cache_spec(slot_format("auto", shape.dtype))

    def plan(spec: CacheSpec) -> CachePlan:
        return plan_cache(shape, budget, spec, free_bytes=None)

    fit = Fit(shape, spec, weights=None, quant="none", device="cpu", free_bytes=None, is_automatic=True)
    chosen = fit.specs(budget)[0]
    assert shape.max_positions is not None
    assert (f"{shape.kv_bytes_per_token(chosen.slot_format):,}", chosen.slot_format.name) == (per_token, stored)
    assert (f"{plan(chosen).slots:,}", f"{plan(spec).slots:,}") == (tokens, own)
    assert human_bytes(shape.full_cache_bytes(shape.max_positions)) == unbounded


def test_the_table_of_decoding_on_a_cpu_is_what_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "decode-cpu.json").read_text())["results"]
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for row in found:
        ours, theirs, ratio, ceiling = (row[name] for name in ("kvlite", "transformers", "ratio", "ceiling"))
        line = f"| {row['context']:,} | {row['slots']:,} | {ours:,.0f} | {theirs:,.0f} | {ratio:.2f} | {ceiling:,.0f} |"
        assert line in page, f"docs/performance.md lacks {line}"


def test_the_table_of_settings_is_what_the_policies_have() -> None:
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    table = page.partition("| policy | settings and defaults |")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", table, re.M))
    found = {name: load_policy(name).settings for name in policy_names()}
    assert told == {name: write_settings(settings, ", ") for name, settings in found.items() if settings}
    meanings = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`[^|]*) \|", page, re.M))))
    assert meanings >= {setting for settings in found.values() for setting in settings}


def python_examples() -> list[tuple[str, str]]:
    pages = (ROOT / "README.md", ROOT / "docs" / "python.md")
    blocks = [(page.name, re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.S | re.M)) for page in pages]
    return [(name, block) for name, found in blocks for block in found]


@pytest.mark.parametrize(("page", "example"), python_examples())
def test_examples_in_python_run(page: str, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example, page, "exec"), {})  # noqa: S102 - what the page tells a reader to run
    assert capsys.readouterr().out.strip()


def test_the_readme_shows_python_in_ten_lines() -> None:
    (example,) = (block for page, block in python_examples() if page == "README.md")
    assert len([line for line in example.splitlines() if line]) <= 10
