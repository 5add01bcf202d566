"""The options that several commands share, each declared once, and what is built from them.

A default lives with the object the option fills (`ModelOptions`, `Sampling`, the model's generation_config.json); an
option that was not given is None and overrides nothing. `allow_from_autoenv=False` marks what must be typed every
time: it is read neither from the environment nor from a config file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kvlite.cli.invocation import BUILT_IN_MODEL as BUILT_IN_MODEL
from kvlite.cli.invocation import UNNAMED as UNNAMED
from kvlite.cli.invocation import announce_built_in as announce_built_in
from kvlite.cli.invocation import chosen_model
from kvlite.cli.invocation import console as console
from kvlite.cli.invocation import default_model as default_model
from kvlite.errors import UsageError

if TYPE_CHECKING:
    from kvlite.options import ModelOptions

QUANT_SPELLINGS = {
    "none": "none",
    "8bit": "8bit",
    "bnb-8bit": "8bit",
    "bnb.int8": "8bit",
    "4bit": "4bit",
    "bnb-4bit": "4bit",
    "bnb.nf4-dq": "4bit",
    "nf4": "nf4",
    "bnb.nf4": "nf4",
    "fp4": "fp4",
    "bnb.fp4": "fp4",
}


def _complete_model(incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_model

    return list(complete_model(incomplete))


def _complete_policy(incomplete: str) -> list[str]:
    from kvlite.cache.policy import policy_names

    return [name for name in policy_names() if name.startswith(incomplete)]


def _read_quant(value: str | None) -> str | None:
    if value is None:
        return None
    if value.lower() not in QUANT_SPELLINGS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(dict.fromkeys(QUANT_SPELLINGS.values()))}")
    return QUANT_SPELLINGS[value.lower()]


def _read_system(value: str | None) -> str | None:
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise typer.BadParameter(f"cannot read {value[1:]!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{value[1:]!r} is not UTF-8 text") from error


def _read_stop(value: list[str] | None) -> list[str] | None:
    if value and "" in value:
        raise typer.BadParameter("an empty stop string would end every answer at once; give some text")
    return value


_MODEL, _MEMORY, _SAMPLING = "Model", "Memory", "Sampling"
_MODEL_HELP = "Alias, org/name[@revision] or folder."

ModelArg = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", autocompletion=_complete_model, show_default=False,
                   help=f"{_MODEL_HELP[:-1]}; without one, the built-in {BUILT_IN_MODEL}."),
]  # fmt: skip
ModelOption = Annotated[  # KVLITE_MODEL and the config are weaker than a model among the arguments: default_model()
    str | None,
    typer.Option("-m", "--model", metavar="MODEL", help=_MODEL_HELP, autocompletion=_complete_model,
                 allow_from_autoenv=False, rich_help_panel=_MODEL),
]  # fmt: skip

KvBudget = Annotated[
    str | None,
    typer.Option("--kv-budget", metavar="SIZE", show_default="auto", rich_help_panel=_MEMORY,
                 help="Bytes the KV cache may take: 2GB, 512MiB, 25% of free memory, 8000tok, auto or full."),
]  # fmt: skip
KvPerSeq = Annotated[
    str | None,
    typer.Option("--kv-per-seq", metavar="SIZE", rich_help_panel=_MEMORY,
                 help="Bytes of the KV cache one sequence of a batch may take."),
]  # fmt: skip
KvPolicy = Annotated[
    str | None,
    typer.Option("--kv-policy", metavar="NAME", show_default="heavy-hitter", autocompletion=_complete_policy,
                 rich_help_panel=_MEMORY, help="What is kept when the budget is full; `kvlite policies` lists them."),
]  # fmt: skip
KvDtype = Annotated[
    str | None,
    typer.Option("--kv-dtype", metavar="DTYPE", show_default="auto", rich_help_panel=_MEMORY,
                 help="What a slot stores: float32, bfloat16, float16, int8, int4, or auto: the model's dtype, or "
                 "fewer bits where that does not hold its window."),
]  # fmt: skip
OnFull = Annotated[
    Literal["evict", "stop", "error"] | None,
    typer.Option("--on-full", show_default="evict; stop under policy full", rich_help_panel=_MEMORY,
                 help="When the budget is full: evict tokens, stop the answer, or fail (exit 4)."),
]  # fmt: skip
PinSystem = Annotated[
    bool,
    typer.Option("--pin-system/--no-pin-system", rich_help_panel=_MEMORY, help="Never evict the system prompt."),
]
PrefillChunk = Annotated[
    int | None,
    typer.Option("--prefill-chunk", metavar="N", min=1, show_default="512", rich_help_panel=_MEMORY,
                 help="At most this many prompt tokens at once."),
]  # fmt: skip

Quant = Annotated[
    str | None,
    typer.Option("--quant", metavar="KIND", show_default="none", callback=_read_quant, rich_help_panel=_MODEL,
                 help="Quantise the weights: none, 8bit, 4bit (nf4, double), nf4 or fp4."),
]  # fmt: skip
FourBit = Annotated[bool, typer.Option("--4bit", rich_help_panel=_MODEL, help="Short for --quant 4bit.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", show_default="auto", rich_help_panel=_MODEL,
                 help="Compute in auto, float32, bfloat16 or float16."),
]  # fmt: skip
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", show_default="auto", rich_help_panel=_MODEL,
                 help="auto, cpu, cuda, cuda:N or mps."),
]  # fmt: skip
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", rich_help_panel=_MODEL, help="Branch, tag or commit of the repository."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", allow_from_autoenv=False, rich_help_panel=_MODEL,
                 help="Run Python code that comes with the model."),
]  # fmt: skip
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", allow_from_autoenv=False, rich_help_panel=_MODEL,
                 help="Load weights that are not safetensors; a pickle can run code."),
]  # fmt: skip
Fuse = Annotated[
    bool,
    typer.Option("--fuse/--no-fuse", rich_help_panel=_MODEL,
                 help="Run norms, MLPs and attention in fewer operations where the logits stay the same."),
]  # fmt: skip
Kernels = Annotated[
    Literal["auto", "torch", "triton"],
    typer.Option("--kernels", rich_help_panel=_MODEL,
                 help="What attends, evicts, runs fused modules and 4-bit weights: torch, or Triton on CUDA; "
                      "auto is torch for now."),
]  # fmt: skip
Capture = Annotated[
    bool | None,
    typer.Option("--capture/--no-capture", rich_help_panel=_MODEL, show_default=False,
                 help="Run CUDA graphs, decoding one step ahead of the host; off for now unless given."),
]  # fmt: skip
Offline = Annotated[
    bool,
    typer.Option("--offline", envvar=["KVLITE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"], show_envvar=False,
                 rich_help_panel=_MODEL, help="Use only files that are already here (also HF_HUB_OFFLINE)."),
]  # fmt: skip

System = Annotated[
    str | None,
    typer.Option("-s", "--system", metavar="TEXT|@FILE", callback=_read_system, help="System prompt."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "-n",
        "--max-tokens",
        metavar="N",
        min=1,
        rich_help_panel=_SAMPLING,
        help="End an answer after N: 8,192 unless given, in a batch 1,024.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option("-t", "--temperature", metavar="X", rich_help_panel=_SAMPLING,
                 help="0 is greedy, 1 leaves the probabilities as they are."),
]  # fmt: skip
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="X", rich_help_panel=_SAMPLING, help="Draw from the likeliest share X."),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", metavar="N", rich_help_panel=_SAMPLING, help="Draw from the N likeliest.")
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", metavar="X", rich_help_panel=_SAMPLING, help="Drop tokens below X times the likeliest."),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", metavar="X", rich_help_panel=_SAMPLING, help="Above 1 discourages repeats."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", rich_help_panel=_SAMPLING, help="Same seed, same answer.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", callback=_read_stop, rich_help_panel=_SAMPLING,
                 help="End the answer before TEXT; may be given several times."),
]  # fmt: skip
Greedy = Annotated[
    bool, typer.Option("--greedy", rich_help_panel=_SAMPLING, help="Always the likeliest token; --temperature 0.")
]
Think = Annotated[
    Literal["auto", "on", "off"] | None,
    typer.Option("--think", show_default="auto", help="Whether a thinking model thinks first."),
]
ShowThinking = Annotated[bool, typer.Option("--show-thinking", help="Show the thinking, on stderr.")]
Report = Annotated[
    str | None,
    typer.Option("--report", metavar="PATH|auto|none", show_default="auto",
                 help="Where the run record goes; auto is the state folder."),
]  # fmt: skip


def model_options(*, model: str | None, four_bit: bool = False, quant: str | None = None, **flags: Any) -> ModelOptions:
    """The ModelOptions of these flags; a flag that is None keeps its default, no model means the built-in one.

    `flags` are fields of ModelOptions. Raises UsageError when `--4bit` contradicts `--quant`.
    """
    from kvlite.options import ModelOptions

    if four_bit and quant not in (None, "4bit"):
        raise UsageError(f"--4bit contradicts --quant {quant}; give one of them")
    flags["quant"] = "4bit" if four_bit else quant
    given = {name: value for name, value in flags.items() if value is not None}
    return ModelOptions(model=chosen_model(model), **given)


def sampling(*, greedy: bool = False, temperature: float | None = None, **flags: float | int | None) -> dict[str, Any]:
    """The sampling settings that were given, as fields of Sampling. Raises UsageError on values out of range."""
    from kvlite.engine.request import Sampling

    if greedy and temperature:  # NaN is true and is refused with the contradiction
        raise UsageError(f"--greedy contradicts --temperature {temperature}; give one of them")
    flags["temperature"] = 0.0 if greedy else temperature
    given = {name: value for name, value in flags.items() if value is not None}
    Sampling(**given)  # type: ignore[arg-type]  # only to have the ranges checked before anything is loaded
    return given
