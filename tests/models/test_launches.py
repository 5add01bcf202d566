"""How many kernels a decoder layer launches for one token does not creep up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "launches.py"
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2"]
ALL = ["norm", "mlp", "attention", "layer", "decoder"]

MOST_BETWEEN = {
    "unfused": {"llama": 37, "qwen2": 37, "qwen3": 53, "gemma2": 61},  # transformers' own
    "torch": {"llama": 14, "qwen2": 14, "qwen3": 17, "gemma2": 24},
    "triton": {"llama": 9, "qwen2": 9, "qwen3": 9, "gemma2": 9},
}
"""Kernels between and including a layer's products, what is on slots left out."""

MOST_ON_SLOTS = {
    "torch": {"llama": 10, "qwen2": 10, "qwen3": 10, "gemma2": 32},  # gemma2 caps its logits
    "triton": {"llama": 4, "qwen2": 4, "qwen3": 4, "gemma2": 5},
}
MOST_BESIDE_LAYERS = {
    "unfused": {"llama": 90, "qwen2": 90, "qwen3": 90, "gemma2": 161},  # two groups of layers, one of which slides
    "torch": {"llama": 83, "qwen2": 83, "qwen3": 83, "gemma2": 154},  # the final norm is fused
    "triton": {
        "llama": 53,
        "qwen2": 53,
        "qwen3": 53,
        "gemma2": 91,
    },  # the score in torch; one launch evicts for a group
}
"""What the whole step does once: embedding, angles, head, and slots that are placed and evicted for all layers; in
torch most of it is the ranking by neighbours."""


@pytest.fixture(scope="module")
def counted() -> list[dict[str, Any]]:
    """What the script says, in a process that does not interpret Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-W", "error", str(SCRIPT), "--json", "--families", ",".join(FAMILIES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(counted: list[dict[str, Any]], family: str, modules: str, slots: str) -> dict[str, Any]:
    if "triton" in (modules, slots) and find_spec("triton") is None:
        pytest.skip("the Triton kernels need triton, which is not installed")
    wanted = (family, modules, slots)
    (found,) = (line for line in counted if (line["family"], line["modules"], line["slots"]) == wanted)
    return found


@pytest.mark.parametrize("modules", MOST_BETWEEN)
@pytest.mark.parametrize("family", FAMILIES)
def test_launches_between_the_products_stay_few(counted: list[dict[str, Any]], family: str, modules: str) -> None:
    found = of(counted, family, modules, "triton" if modules == "triton" else "torch")
    in_force = ALL[:-1] if family == "gemma2" else ALL  # which scales what it embeds and caps its logits
    assert found["fused"] == ([] if modules == "unfused" else in_force)
    assert 0 < found["dense_per_layer"] <= MOST_BETWEEN[modules][family]
    assert 0 < found["step"] <= MOST_BESIDE_LAYERS[modules][family]


@pytest.mark.parametrize("slots", MOST_ON_SLOTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_launches_on_slots_stay_few(counted: list[dict[str, Any]], family: str, slots: str) -> None:
    found = of(counted, family, "unfused", slots)
    assert 0 < found["slots_per_layer"] <= MOST_ON_SLOTS[slots][family]


def test_fusing_and_triton_each_save_launches(counted: list[dict[str, Any]]) -> None:
    ways = [("unfused", "torch"), ("torch", "torch"), ("triton", "triton")]
    for family in FAMILIES:
        unfused, on_torch, on_triton = (of(counted, family, *way)["per_layer"] for way in ways)
        assert unfused > on_torch > on_triton
