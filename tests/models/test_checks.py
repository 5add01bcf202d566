"""The checks after loading are made once: a later start takes over what they found, as long as nothing changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kvlite.catalog.names import demo_folder
from kvlite.errors import SlotsTooCoarse
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel, Told
from kvlite.memory.format import FORMATS
from kvlite.models import checks, kv_quant_check
from kvlite.models.fusing import probe_logits
from kvlite.models.loaded import LoadedModel
from kvlite.models.loading import load
from kvlite.options import ModelOptions
from kvlite.record.verdicts import Verdicts
from tests.architectures import tiny_model
from tests.model_folder import files_of

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny llama with the built-in model's tokenizer."""
    tiny_model("llama", {"vocab_size": 1024}).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checks that were made, in order."""
    made: list[str] = []
    for name in ("admit", "fuse"):
        whole = getattr(checks, name)

        def noted(*args: Any, name: str = name, whole: Any = whole) -> Any:
            made.append(name)
            return whole(*args)

        monkeypatch.setattr(checks, name, noted)
    return made


def start(folder: Path, **options: Any) -> LoadedModel:
    return load(files_of(folder), ModelOptions(**options), CPU, Verdicts())


@pytest.mark.parametrize("options", [{}, {"fuse": False}, {"dtype": "bfloat16"}])
def test_a_second_start_finds_the_same_without_the_checks(
    folder: Path, checked: list[str], options: dict[str, Any]
) -> None:
    first = start(folder, **options)
    made = [*checked]
    second = start(folder, **options)
    assert checked == made and "admit" in made
    assert second.remembered and not first.remembered
    assert (second.fused, second.refused) == (first.fused, first.refused)
    assert (second.decoder is None) == (first.decoder is None)
    assert first.rotations is not None and second.rotations is not None
    for one, other in zip(first.rotations.values(), second.rotations.values(), strict=True):
        assert one is not None and other is not None
        assert torch.equal(one.inv_freq, other.inv_freq)
        assert (one.start, one.interleaved) == (other.start, other.interleaved)
    assert torch.equal(probe_logits(first), probe_logits(second))


@pytest.mark.parametrize("change", ["weights", "config", "dtype", "versions", "code"])
def test_what_changed_is_checked_anew(
    folder: Path, checked: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    start(folder)
    checked.clear()
    options: dict[str, Any] = {}
    if change == "weights":
        weights = folder / "model.safetensors"
        time = weights.stat().st_mtime_ns
        bytes_of = bytearray(weights.read_bytes())
        bytes_of[-1] ^= 1
        weights.write_bytes(bytes_of)
        os.utime(weights, ns=(time, time))
    elif change == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 2e-6}))
    elif change == "dtype":
        options = {"dtype": "bfloat16"}
    elif change == "versions":
        monkeypatch.setattr(checks, "versions", lambda: {"torch": "9"})
    else:
        monkeypatch.setattr(checks, "code_stamp", lambda: "other")
    start(folder, **options)
    assert "admit" in checked


def test_a_verdict_that_does_not_fit_the_model_is_found_anew(folder: Path, checked: list[str]) -> None:
    about = start(folder).about
    assert about is not None
    for rotations in ({}, {0: (9, 1, 0, False), 1: (9, 1, 0, False)}):
        known = Verdicts().find(about)
        assert known is not None
        Verdicts().keep(about, type(known)(rotations, known.fused, known.refused))
        checked.clear()
        assert start(folder).rotations
        assert "admit" in checked


def test_code_of_the_models_own_is_checked_each_time(folder: Path, checked: list[str]) -> None:
    start(folder, trust_remote_code=True)
    start(folder, trust_remote_code=True)
    assert checked.count("admit") == 2
    assert Verdicts().known() == []


def test_the_effect_of_slot_formats_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RunSpec.of(ModelOptions(model="demo", device="cpu"))
    first = TextModel.load(spec, Told()).effect_of(FORMATS["int4"])
    monkeypatch.setattr(kv_quant_check, "try_format", None)
    model = TextModel.load(spec, Told())
    assert model.effect_of(FORMATS["int4"]) == first
    monkeypatch.setattr(kv_quant_check, "DESTROYED", 0.0)
    with pytest.raises(SlotsTooCoarse):
        model.effect_of(FORMATS["int4"], is_named=True)
