"""The other end of pressed.py: reads a JSON line, answers a JSON line. Imports kvpress, nothing of kvlite."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any


def main() -> None:
    """Serve until stdin closes; what goes wrong is an answer too."""
    model: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if model is None:
                model = build(question)
                answer = {name: version(name) for name in ("kvpress", "transformers")}
            else:
                answer = generate(model, **question)
        except Exception as error:  # the parent has nothing but this line to go by
            answer = {"error": f"kvpress: {type(error).__name__}: {str(error).splitlines()[0]}"}
        print(json.dumps(answer), flush=True)


def build(question: dict[str, Any]) -> Any:
    """A model of the shape asked for, with random weights."""
    import kvpress  # noqa: F401  # it is missing before anything is built
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(question["family"], **question["config"])
    torch.manual_seed(0)
    with torch.device(question["device"]):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, question["dtype"])).eval()


def generate(model: Any, prompts: list[list[int]], tokens: int, target: int) -> dict[str, float]:
    """Seconds to the first token and to the last; the first comes from a run of one token."""
    import torch
    from kvpress import DecodingPress, KnormPress

    ids = torch.tensor(prompts, device=model.device)

    def seconds(count: int) -> float:
        press = DecodingPress(base_press=KnormPress(), target_size=target)
        start = time.perf_counter()
        with press(model):
            model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
                           eos_token_id=None, pad_token_id=0)  # fmt: skip
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - start

    return {"first_s": seconds(1), "total_s": seconds(tokens)}


if __name__ == "__main__":
    main()
