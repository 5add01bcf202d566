"""Processor time and peak memory until a GGUF file is a model with a tokenizer: kvlite's way beside transformers' own.

    python benchmarks/gguf_loading.py model.gguf [--rounds 2]

Each way runs in a process of its own, in turns, on one thread, imports of torch and transformers not counted; kvlite's
first round makes its folder of config and tokenizer. Both unpack the weights into bfloat16.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]


def ours(file: Path) -> None:
    """Load as kvlite does."""
    import torch
    import transformers

    from kvlite.gguf.folder import gguf_folder
    from kvlite.gguf.header import read_header
    from kvlite.models.gguf_weights import state_dict

    folder = gguf_folder(read_header(file))
    transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    weights = state_dict(read_header(file), torch.bfloat16)
    kind = getattr(transformers, config.architectures[0])
    kind.from_pretrained(None, config=config, state_dict=weights, dtype=torch.bfloat16)


def theirs(file: Path) -> None:
    """Load as transformers does."""
    import torch
    import transformers

    how = {"gguf_file": file.name}
    transformers.AutoTokenizer.from_pretrained(file.parent, **how)
    if hasattr(transformers, "GgufConfig"):
        how["quantization_config"] = transformers.GgufConfig(dequantize=True)
    transformers.AutoModelForCausalLM.from_pretrained(file.parent, **how, dtype=torch.bfloat16)


WAYS: dict[str, Callable[[Path], None]] = {"kvlite": ours, "transformers": theirs}


def measure(way: str, file: Path) -> str:
    """One line of figures, of this process."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    before = time.process_time()
    WAYS[way](file)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{way:14}{time.process_time() - before:7.2f} s of processor time{peak / 1e6:9.0f} MB at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        print(measure(asked.way, asked.file))
        return
    for _ in range(asked.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, str(asked.file), "--way", way]
            print(subprocess.run(command, check=True, text=True, capture_output=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
