"""Rotary factors for short texts and for long ones (`longrope`): a run has one set, by what a row may hold."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from kvlite import LLM
from kvlite.catalog.names import demo_folder
from kvlite.cli import main
from kvlite.llm.saved_row import RowFacts
from kvlite.models.probe import dry_cache, feed
from tests.architectures import tiny_model
from tests.gguf.gguf_file import write_model

ORIGINAL, WINDOW = 64, 512
ROPE: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.5 + i for i in range(8)], "original_max_position_embeddings": ORIGINAL,
}  # fmt: skip
LONG, SHORT = f"{ORIGINAL + 1}tok", f"{ORIGINAL}tok"
TOLD = {
    LONG: "turns positions by its factors for long texts; --kv-budget 64tok or less takes those for short ones",
    SHORT: "turns positions by its factors for short texts; more than --kv-budget 64tok takes those for long ones",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Phi-3 for 64 positions, and for 512 with other factors; and the same in a GGUF file."""
    made = tmp_path_factory.mktemp("phi3")
    settings = {"rope_parameters": ROPE, "original_max_position_embeddings": ORIGINAL, "eos_token_id": None}
    model = tiny_model("phi3", settings, vocab_size=1024)
    model.save_pretrained(made)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo_folder() / name, made)
    (made / "gguf").mkdir()
    write_model(made / "gguf" / "model.gguf", tiny_model("phi3", settings, vocab_size=300))
    return made


def opened(path: Path, budget: str, **options: Any) -> LLM:
    return LLM(path, kv_budget=budget, profile="off", device="cpu", **options)


def ours(llm: LLM, ids: Tensor) -> Tensor:
    loaded = llm.model.loaded
    with torch.inference_mode():
        return feed(loaded, dry_cache(loaded, ids.shape[1]), ids)


def theirs(llm: LLM, ids: Tensor, folder: Path) -> Tensor:
    """The logits of transformers' own model, which picks factors by the length of what it is fed."""
    if llm.model.files.gguf is not None:
        llm = opened(folder / "gguf" / "model.gguf", SHORT)  # its module still has both sets
        llm.model.loaded.model.set_attn_implementation("eager")
        with torch.inference_mode():
            return llm.model.loaded.model(ids, use_cache=False).logits  # type: ignore[no-any-return]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.inference_mode():
        return model(ids, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("source", [".", "gguf/model.gguf"])
def test_logits_are_those_of_transformers_on_both_sides(source: str, folder: Path) -> None:
    above, below = (torch.randint(3, 290, (1, count)) for count in (ORIGINAL + 40, ORIGINAL))
    with opened(folder / source, LONG, fuse=False) as long, opened(folder / source, SHORT, fuse=False) as short:
        assert (long.model.loaded.window, short.model.loaded.window) == (WINDOW, ORIGINAL)
        torch.testing.assert_close(ours(long, above), theirs(long, above, folder), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours(short, below), theirs(short, below, folder), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(ours(long, below), ours(short, below), atol=1e-3)
        torch.testing.assert_close(ours(long, above)[:, :ORIGINAL], ours(long, above[:, :ORIGINAL]), atol=1e-5, rtol=0)


def test_answers_to_a_long_prompt_are_those_of_transformers(folder: Path) -> None:
    prompt = "Hello! What is your name? " * 20
    with opened(folder, "400tok", kv_policy="full") as llm:
        ids = torch.tensor([llm.model.text.raw(prompt).ids])
        assert ids.shape[1] > ORIGINAL
        (answer,) = llm.generate([prompt], raw=True, max_tokens=16, greedy=True)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    wanted = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()
    assert list(answer.completion.ids) == wanted


@pytest.mark.parametrize(("budget", "long"), [(SHORT, False), ("30tok", False), (LONG, True), ("1MB", True)])
def test_one_set_of_factors_serves_a_row_that_outgrows_it(budget: str, long: bool, folder: Path) -> None:
    with opened(folder, budget, kv_policy="window") as llm:
        rotary = llm.model.loaded.model.model.rotary_emb
        before = rotary.inv_freq.clone()
        llm.generate(["Hello! " * 60], raw=True, max_tokens=8, greedy=True)
        assert torch.equal(rotary.inv_freq, before)
        wanted = ROPE["long_factor" if long else "short_factor"]
        plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
        torch.testing.assert_close(before, plain / torch.tensor(wanted))


@pytest.mark.parametrize("budget", [SHORT, LONG, "20kB", "100kB", "full", "auto"])
def test_plan_and_show_say_what_a_run_does(budget: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    with opened(folder, budget, say=said.append, kv_dtype="fp32") as llm:
        window, told = llm.model.loaded.window, llm.model.loaded.shape.factors
        slots = llm.plan.slots
    assert f"{folder} {told}" in said
    assert told == TOLD[LONG if window == WINDOW else SHORT]
    assert main(["plan", str(folder), "--kv-budget", budget, "--kv-dtype", "fp32", "--profile", "off", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["window"], plan["short_window"], plan["tokens"]) == (window, ORIGINAL, slots)
    assert main(["plan", str(folder), "--kv-budget", budget, "--kv-dtype", "fp32"]) == 0
    assert told in capsys.readouterr().out
    assert main(["show", str(folder)]) == 0
    assert "512 tokens, 64 with its factors for short texts" in capsys.readouterr().out


def test_a_saved_row_goes_on_under_its_own_factors_alone(folder: Path) -> None:
    with opened(folder, LONG) as long, opened(folder, SHORT) as short:
        saved = asdict(RowFacts.of(long, []))
        assert RowFacts.of(long, []).differing(saved) is None
        assert RowFacts.of(short, []).differing(saved) == "its rotary factors were those for 512 positions"
