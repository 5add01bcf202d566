"""Answers with and without drafted tokens on one core, by processor time: a text written once more, and stories.

    python benchmarks/speculation.py FOLDER --out benchmarks/results/speculation-smollm2-cpu.json

FOLDER holds the model in bfloat16. With and without take turns in one process, each time without what an earlier round
has learned; medians of the rounds are reported, and whether the tokens are the same.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

from kvlite import LLM
from kvlite.engine.request import Completion, Request, Sampling
from kvlite.engine.speculation import Speculation

TEXT = """\
The harbour of Whitby lies where the river Esk meets the North Sea. For centuries its people lived from whaling, \
from ship building and from the herring that came down the coast every summer. The old town climbs the eastern \
cliff in narrow lanes, and a stair of one hundred and ninety-nine steps leads from the market place to the church \
of Saint Mary. Above the church stand the ruins of the abbey, which was founded in the seventh century and \
rebuilt by the Normans. Captain James Cook learned his trade here as an apprentice, and the ships in which he \
sailed around the world were built in the yards along the river. In the nineteenth century the railway brought \
visitors, who came for the sea air, and the jet that is found in the cliffs became a fashion when the Queen wore \
it in mourning. Bram Stoker spent a summer on the west cliff and let his vampire come ashore below the abbey in \
the shape of a great black dog. Today the fishing fleet is small, but the smoke houses still cure kippers over \
oak chips, and on a clear evening the sun can be seen to rise and to set over the sea, because the coast faces \
north. Every spring the town remembers its whalers with a festival, and the swing bridge opens for the tall ships \
that come to visit. Those who walk along the pier at dusk can hear the bell buoy that rings with the swell, and \
see the two lights that guide the boats home between the stone walls of the harbour mouth. In winter, when the \
gales blow from the north, the waves break over the lighthouses and the lifeboat stands ready. Its crew are \
fishermen, teachers and carpenters, as their fathers were, and their names are painted in gold on wooden boards \
that hang on the walls of the old boat house, with the year of each launch and the number of the saved. On summer \
nights the harbour is full of lanterns, and bands play on the bandstand until the tide has turned."""

STORY = "Tell me a long story about a lighthouse keeper and a storm."
TASKS = {
    "rewriting": (f"Write the following text once more and put Scarborough in place of Whitby:\n\n{TEXT}", Sampling()),
    "story": (STORY, Sampling()),
    "story, drawn": (STORY, Sampling(temperature=1.0, seed=1)),
}


def measure(llm: LLM, settings: list[str], rounds: int, tokens: int) -> dict[str, Any]:
    """Measure each task under each of `settings`, in turns."""
    found: dict[str, Any] = {}
    for task, (words, sampling) in TASKS.items():
        prompt = llm.model.text.prompt(words).ids
        took: dict[str, list[float]] = {setting: [] for setting in settings}
        answers: dict[str, Completion] = {}
        for _ in range(rounds):
            for setting in settings:
                asked: Any = int(setting) if setting.isdigit() else setting
                llm.engine.decoder.speculation = Speculation(asked)
                request = Request("a", prompt, sampling, max_tokens=tokens, stop_ids=llm.model.text.stop_ids)
                events = llm.engine.run([request])
                next(events)
                start = time.process_time()
                *_, done = events
                took[setting].append(time.process_time() - start)
                assert isinstance(done, Completion)
                answers[setting] = done
        found[task] = {"prompt_tokens": len(prompt)}
        for setting, seconds in took.items():
            done, plain = answers[setting], answers[settings[0]]
            found[task][setting] = {
                "tokens": len(done.ids),
                "tok_per_s": len(done.ids) / median(seconds),
                "ratio": median(took[settings[0]]) / median(seconds),
                "seconds": seconds,
                "drafted": done.drafted,
                "accepted": done.accepted,
                "same_tokens": done.ids == plain.ids,
            }
    return found


def main() -> None:
    """Measure the weights as they are and packed, print a table, and write the file where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--quant", default="none,4bit", metavar="A,B")
    parser.add_argument(
        "--settings", default="off,auto", metavar="A,B", help="The first is what the others are held to."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=420)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg(),
        "rounds": options.rounds,
        "weights": {},
    }
    print("| weights | text | drafts | tokens | tok/s | ratio | right / drafted | same tokens |\n" + "|---" * 8 + "|")
    for quant in options.quant.split(","):
        with LLM(options.folder, quant=quant, kv_budget="2000tok") as llm:
            found = measure(llm, options.settings.split(","), options.rounds, options.tokens)
        record["weights"][quant] = found
        for task, rows in found.items():
            for setting, one in rows.items():
                if setting != "prompt_tokens":
                    line = (quant, task, setting, str(one["tokens"]), f"{one['tok_per_s']:.1f}", f"{one['ratio']:.2f}")
                    drafts = f"{one['accepted']} / {one['drafted']}"
                    print(f"| {' | '.join(line)} | {drafts} | {'yes' if one['same_tokens'] else 'no'} |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
