"""kvpress as a peer, in an interpreter of its own with the older transformers it needs.

The child builds the same shape with random weights of its own, equal to ours where the two versions of transformers
draw alike from one seed, and answers one JSON line for each JSON line. kvpress computes a prompt with all its keys and
values, evicts afterwards, and again every so many steps.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from peers.peer import Case, NotAvailable, Took
from peers.shapes import SHAPES, WINDOW

CHILD = Path(__file__).with_name("pressed_child.py")


class Kvpress:
    """A process that generates under a PrefillDecodingPress. Raises NotAvailable where it cannot be had."""

    name = "kvpress"

    def __init__(self, python: Path | None, shape: str, device: str, dtype: str) -> None:
        if python is None:
            raise NotAvailable("kvpress runs in an environment of its own; give --kvpress-python PATH")
        if not python.is_file():
            raise NotAvailable(f"--kvpress-python {python.name} is not there")
        self._child = subprocess.Popen(
            [str(python), str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        config = {**SHAPES[shape].config(), "max_position_embeddings": WINDOW, "pad_token_id": 0}
        ready = self._ask({"family": SHAPES[shape].family, "config": config, "device": device, "dtype": dtype,
                           "threads": torch.get_num_threads()})  # fmt: skip
        versions = f"kvpress {ready['kvpress']}, transformers {ready['transformers']}"
        self.note = f"{versions}, KnormPress to 3/4 of the slots after the prompt and whenever they are full"

    def answer(self, prompt: list[int], tokens: int, case: Case) -> Took:
        """As `Peer.answer`; decoding holds at most `case.slots`."""
        said = self._ask({"prompt": prompt, "tokens": tokens, "slots": case.slots})
        return Took(said["first_s"], said["total_s"], tokens, said["ids"], said["processor_s"])

    def read_bytes(self, case: Case) -> int | None:
        """Not known: the cache grows between compressions."""
        return None

    def close(self) -> None:
        """End the process."""
        self._child.stdin.close()  # type: ignore[union-attr]
        self._child.wait(timeout=60)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError as error:
            raise NotAvailable("the interpreter of --kvpress-python ended") from error
        if not line.startswith("{"):
            raise NotAvailable(f"the interpreter of --kvpress-python said {line.strip()!r}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise NotAvailable(said["error"])
        return said
