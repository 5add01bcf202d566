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
                answer: dict[str, Any] = {name: version(name) for name in ("kvpress", "transformers")}
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

    torch.set_num_threads(question["threads"])
    config = AutoConfig.for_model(question["family"], **question["config"])
    torch.manual_seed(0)
    with torch.device(question["device"]):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, question["dtype"])).eval()


def generate(model: Any, prompt: list[int], tokens: int, slots: int) -> dict[str, Any]:
    """Seconds to the first token, to the last and of the processors, and the ids.

    A press leaves three quarters of `slots` and comes again when the last quarter is full, so that no more than `slots`
    are held once the prompt has been computed.
    """
    import torch
    from kvpress import DecodingPress, KnormPress, PrefillDecodingPress

    ids = torch.tensor([prompt], device=model.device)
    stamps: list[float] = []

    class Stamps:
        """The time of each token; the prompt is put first."""

        def put(self, value: torch.Tensor) -> None:
            stamps.append(time.perf_counter())

        def end(self) -> None:
            pass

    target = max(1, slots * 3 // 4)
    press = PrefillDecodingPress(
        KnormPress(max(0.0, 1 - target / ids.shape[1])),
        DecodingPress(KnormPress(), compression_interval=max(1, slots - target), target_size=target),
    )
    start, used = time.perf_counter(), time.process_time()
    with press(model):
        answers = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
                                 eos_token_id=None, pad_token_id=0, streamer=Stamps())  # fmt: skip
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    total_s = time.perf_counter() - start
    return {"first_s": stamps[1] - start, "total_s": total_s, "processor_s": time.process_time() - used,
            "ids": answers[0, ids.shape[1] :].tolist()}  # fmt: skip


if __name__ == "__main__":
    main()
