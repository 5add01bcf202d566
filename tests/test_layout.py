"""The shape of the house: floors, light packages, names and docstrings."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT, ROOT / "kernels")

# Imports go down: from a package to one on a lower floor, or inside it; between packages of one floor none.
FLOORS: dict[str, float] = {
    "kvlite.errors": 0,
    "kvlite.flags": 0,
    "kvlite_kernels": 0,
    "kvlite.demo": 0,
    "kvlite.options": 1,
    "kvlite.memory": 1,
    "kvlite.gguf": 1,
    "kvlite.catalog": 2,
    "kvlite.cache": 2,
    "kvlite.record": 2,
    "kvlite.profiles": 2.5,
    "kvlite.models": 3,
    "kvlite.text": 4,
    "kvlite.engine": 4,
    "kvlite.console": 4,  # whoever talks with the user does it through here
    "kvlite.deadline": 4,
    "kvlite.llm": 4.5,
    "kvlite": 5,  # the package itself: the public names
    "kvlite.chat": 5,
    "kvlite.batch": 5,
    "kvlite.evaluation": 5,
    "kvlite.speed": 5,
    "kvlite.cli": 6,
    "kvlite.__main__": 7,
}

# These answer before anything heavy is loaded, so they must not load it, not even through others.
LIGHT = (
    "kvlite.errors",
    "kvlite.flags",
    "kvlite.options",
    "kvlite.memory",
    "kvlite.gguf",
    "kvlite.catalog",
    "kvlite.record",
    "kvlite.profiles",
    "kvlite.text",
    "kvlite.engine.request",
    "kvlite.console",
    "kvlite.deadline",
    "kvlite.llm",
    "kvlite.chat",
    "kvlite.batch",
    "kvlite.cli",
)
HEAVY = ("torch", "transformers", "triton", "bitsandbytes", "accelerate")

VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its import name."""
    found = {}
    for source in SOURCES:
        for package in ("kvlite", "kvlite_kernels"):
            for path in sorted((source / package).rglob("*.py")):
                parts = path.relative_to(source).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


class Import(NamedTuple):
    """One of the product's modules that another imports; `runs` is false for what only type checkers follow."""

    line: int
    target: str
    runs: bool


def imports(name: str) -> Iterator[Import]:
    """The product's modules that `name` imports: at the top, in functions, for typing only."""
    tree = ast.parse(modules()[name].read_text())
    unrun = typing_only(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{name}:{node.lineno}: a relative import"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if target in modules() else node.module for target in targets]
        else:
            continue
        for target in targets:
            if target.split(".")[0] in ("kvlite", "kvlite_kernels"):
                yield Import(node.lineno, target, node not in unrun)


def typing_only(tree: ast.Module) -> set[ast.AST]:
    """The nodes under `if TYPE_CHECKING:`."""
    guards = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {node for guard in guards for node in ast.walk(guard)}


def package_of(module: str) -> str:
    """The longest name in FLOORS that `module` is or is inside of."""
    found = [name for name in FLOORS if module == name or (module.startswith(f"{name}.") and name != "kvlite")]
    assert found, f"{module} stands on no floor"
    return max(found, key=len)


def within(package: str) -> list[str]:
    return [name for name in modules() if name == package or name.startswith(f"{package}.")]


def test_every_module_stands_on_a_floor() -> None:
    assert {package_of(name) for name in modules()} <= FLOORS.keys()


@pytest.mark.parametrize("package", FLOORS)
def test_imports_only_go_down(package: str) -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in modules()
        if package_of(name) == package
        for line, target, _ in imports(name)
        if package_of(target) != package and FLOORS[package_of(target)] >= FLOORS[package]
    ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: {found.target for found in imports(name) if found.runs} - {name} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def fresh(code: str) -> str:
    """What `code` prints in a new interpreter that sees the sources."""
    paths = [str(source) for source in SOURCES]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_light_packages_load_nothing_heavy() -> None:
    names = [name for package in LIGHT for name in within(package)]
    assert len(names) > len(LIGHT)
    guilty = fresh(
        "import importlib\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    if loaded:\n"
        "        print(name, 'loads', *loaded)\n"
        "        break\n"
    )
    assert guilty == ""


def test_the_command_line_loads_only_typer_and_the_standard_library() -> None:
    loaded = fresh(
        "import importlib, typer, typer.main\n"
        "before = set(sys.modules)\n"
        "from kvlite.cli import commands, settings\n"
        "for module, *_ in commands.COMMANDS.values():\n"  # what help and completion need
        "    importlib.import_module(module)\n"
        "new = {m for m in set(sys.modules) - before if m.split('.')[0] not in sys.stdlib_module_names}\n"
        "print(*sorted(m for m in new if m.split('.')[0] != 'typer' and not m.startswith('kvlite.cli')))\n"
    )
    assert set(loaded.split()) <= {"kvlite", "kvlite.errors", "kvlite.flags", "kvlite.options", "kvlite.console"}


def test_the_kernels_folder_is_a_source_root_and_no_package() -> None:
    assert (ROOT / "kernels" / "kvlite_kernels" / "__init__.py").is_file()
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tests" / "kernels").exists()


def test_nobody_imports_the_hub_package_called_kernels() -> None:
    outside = [path for folder in ("tests", "benchmarks", "tools") for path in (ROOT / folder).rglob("*.py")]
    files = [*modules().values(), *outside]
    wrong = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path}:{node.lineno}" for name in names if name.split(".")[0] == "kernels"]
    assert wrong == []


def test_every_file_is_named_after_what_it_holds() -> None:
    files = [*modules().values(), *(ROOT / "tests").rglob("*.py")]
    assert [path for path in files if path.stem.removeprefix("test_") in VAGUE] == []


def test_every_package_has_its_init() -> None:
    folders = {path.parent for path in modules().values()}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_module_and_all_that_is_public_in_it_has_a_docstring() -> None:
    bare = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            bare.append(name)
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                bare += [f"{name}.{node.name}"] if ast.get_docstring(node) is None else []
    assert bare == []
