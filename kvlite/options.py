"""The options of the model, its cache, its answers and its batches, which more than the command line reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kvlite.errors import UsageError
from kvlite.flags import argument, option, read_record_name, read_seconds, read_summary_name, read_text

BUILT_IN_MODEL = "demo"
MODEL_HELP = "Alias, org/name[:quant][@revision], folder or GGUF file"
MOST_DRAFTED = 64
Speculate = Literal["auto", "off"] | int
"""Tokens that are drafted at most, whatever it costs; `auto` as many as pay, where that changes no answer."""

MODEL, MEMORY, SAMPLING = "Model", "Memory", "Sampling"  # headings of the help

_of_model, _of_memory, _of_sampling = (partial(option, heading=heading) for heading in (MODEL, MEMORY, SAMPLING))
_of_input, _of_output, _of_run = (partial(option, heading=heading) for heading in ("Input", "Output", "Run"))


def model_option() -> Any:
    """A field for the model of commands whose other words, or whose input, may name one too.

    KVLITE_MODEL and the config are weaker than these, so no setting gives it.
    """
    return _of_model(None, "-m", metavar="MODEL", complete="model", from_settings=False, help=f"{MODEL_HELP}.")


def read_system(value: str) -> str:
    """A system prompt as it is, or the text of the file whose path follows an `@`."""
    if not value.startswith("@"):
        return read_text(value)
    try:
        return Path(value[1:]).read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise ValueError(f"cannot read {value[1:]!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{value[1:]!r} is not UTF-8 text") from error


def read_stop(value: Sequence[str]) -> Sequence[str]:
    """Stop strings, none of them empty."""
    if "" in value:
        raise ValueError("an empty stop string would end every answer at once; give some text")
    return read_text(value)


def read_biases(value: Sequence[str]) -> Sequence[str]:
    """Biases of token ids, each as `ID=X`."""
    for bias in value:
        biases_of([bias])
    return value


def biases_of(written: Sequence[str]) -> tuple[tuple[int, float], ...]:
    """The token ids and numbers of biases. Raises ValueError on one that is none."""
    biases = []
    for bias in written:
        token, _, number = bias.partition("=")
        try:
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ValueError
            biases.append((int(token), float(number)))
        except ValueError:
            raise ValueError(f"{bias!r:.60} is no bias; give ID=X, such as 1234=-100") from None
    return tuple(biases)


def read_schema(value: str) -> str:
    """A JSON Schema: the text itself where it begins with a brace, else that of the file with this name."""
    text = value
    if not value.lstrip().startswith("{"):
        try:
            text = Path(value).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ValueError(f"cannot read {value!r}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{value!r} is not UTF-8 text") from None
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{value:.80} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"{value:.80} holds no object; give a JSON Schema")
    return json.dumps(schema)


def read_batch_size(value: str) -> str:
    """The word auto, or a number of rows."""
    if value != "auto" and not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= 65536):
        raise ValueError(f"{value!r} is no batch size; give auto or a number from 1 to 65536")
    return value


def read_speculate(value: str) -> str:
    """The words auto and off, or a number of tokens."""
    is_number = value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= MOST_DRAFTED
    if value not in ("auto", "off") and not is_number:
        raise ValueError(f"{value!r} is no number of tokens; give auto, off or a number from 1 to {MOST_DRAFTED}")
    return value


def read_report(value: str) -> str:
    """The words auto and none, or the path of a file that can be written."""
    return value if value in ("auto", "none") else read_record_name(value)


def read_devices(value: str) -> str:
    """Devices with commas between them, one for each worker of a batch."""
    worker_devices(value)
    return value


def worker_devices(written: str) -> tuple[str, ...]:
    """The device of each worker: `cpu:2` are two workers on the CPU, `cuda:0` is one on that GPU. Raises ValueError."""
    found: list[str] = []
    for word in written.split(","):
        match = re.fullmatch(r"(cpu)(?::([1-9]\d{0,2}))?|cuda:\d{1,3}|mps", word.strip(), re.ASCII)
        if match is None:
            raise ValueError(f"{word!r} is no device for a worker; give for example cuda:0,cuda:1 or cpu:2")
        found += ["cpu"] * int(match[2] or 1) if match[1] else [word.strip()]
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The model, how it is loaded, and the cache it answers with."""

    model: str = argument(  # None on the command line where nobody names one
        None,
        metavar="MODEL",
        complete="model",
        help=f"{MODEL_HELP}; without one, smollm2-135m if it is here, else the built-in {BUILT_IN_MODEL}.",
    )
    think: Literal["auto", "on", "off"] = option("auto", help="Whether a thinking model thinks first.")

    kv_budget: str = _of_memory(
        "auto",
        metavar="SIZE",
        help="Bytes the KV cache may take: 2GB, 512MiB, 25% of free memory, 8000tok, auto or full.",
    )
    kv_per_seq: str | None = _of_memory(
        None, metavar="SIZE", help="Bytes of the KV cache one sequence of a batch may take."
    )
    kv_policy: str = _of_memory(
        "replay",
        metavar="NAME[:SETTINGS]",
        complete="policy",
        help="What is kept when the budget is full: window, or window:sinks=8; `kvlite policies` lists them.",
    )
    kv_dtype: str = _of_memory(
        "auto",
        metavar="DTYPE",
        complete="format",
        help="What a slot stores: float32, bfloat16, float16, int8, k6v4 (keys in 6 bits, values in 4), int4, or "
        "auto: the model's dtype, or fewer bits where that does not hold its window.",
    )
    profile: str = _of_memory(
        "auto",
        metavar="auto|off|FILE",
        help="Slots by what each head needs: from the model's own profile (see `kvlite profile`), off: as many for all "
        "heads, or from a FILE.",
    )
    on_full: Literal["evict", "stop", "error"] | None = _of_memory(  # None: as the policy does
        None,
        shown_default="evict; stop under policy full",
        help="When the budget is full: evict tokens, stop the answer, or fail (exit 4).",
    )
    pin_system: bool = _of_memory(True, help="Never evict the system prompt.")
    prefill_chunk: int = _of_memory(512, metavar="N", min=1, help="At most this many prompt tokens at once.")

    quant: Literal["none", "8bit", "4bit", "nf4", "fp4"] = _of_model(  # none, where neither this nor --4bit is given
        None,
        metavar="KIND",
        shown_default="none",
        help="Quantise the weights: none, 8bit, 4bit, nf4 or fp4. On a CPU 8bit and 4bit are packed for fast answers.",
    )
    four_bit: bool = _of_model(False, "--4bit", against="quant", help="Short for --quant 4bit.")
    adapter: str | None = _of_model(
        None, metavar="FOLDER|REPO", help="Merge this LoRA adapter into the weights; needs peft."
    )
    dtype: str = _of_model("auto", metavar="DTYPE", help="Compute in auto, float32, bfloat16 or float16.")
    device: str = _of_model("auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")
    revision: str | None = _of_model(None, metavar="REV", help="Branch, tag or commit of the repository.")
    trust_remote_code: bool = _of_model(False, from_settings=False, help="Run Python code that comes with the model.")
    allow_pickle: bool = _of_model(
        False, from_settings=False, help="Load weights that are not safetensors; a pickle can run code."
    )
    fuse: bool = _of_model(
        True, help="Run norms, MLPs and attention in fewer operations where the logits stay the same."
    )
    kernels: Literal["auto", "torch", "triton"] = _of_model(
        "auto",
        help="What attends, evicts and runs fused modules: torch, or Triton on CUDA, for 4-bit weights and the "
        "blocks of GGUF files, too; auto takes Triton where a trial found it right and faster.",
    )
    capture: bool | None = _of_model(  # None: where a GPU shows that it pays
        None,
        "--capture/--no-capture",
        help="Replay decode steps as CUDA graphs; on CUDA, where not given, if they prove exact and faster.",
    )
    speculate: str = _of_model(
        "auto",
        metavar="auto|off|N",
        parse=read_speculate,
        help="Draft at most N tokens as earlier text went on, and verify them at once; auto: as many as pay.",
    )
    offline: bool = _of_model(
        False,
        variables=("KVLITE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
        help="Use only files that are already here (also HF_HUB_OFFLINE).",
    )

    def __post_init__(self) -> None:
        if self.four_bit and self.quant not in (None, "4bit"):
            raise UsageError(f"--4bit contradicts --quant {self.quant}; give one of them")
        object.__setattr__(self, "quant", "4bit" if self.four_bit else self.quant or "none")
        if self.adapter is not None and self.quant != "none":
            raise UsageError(f"--adapter cannot be merged into weights of --quant {self.quant}; leave out one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """The system prompt, how tokens are drawn and where an answer ends; what is None is left to the model."""

    system: str | None = option(None, "-s", metavar="TEXT|@FILE", parse=read_system, help="System prompt.")
    max_tokens: int | None = _of_sampling(
        None, "-n", metavar="N", min=1, help="End an answer after N: 8,192 unless given, in a batch 1,024."
    )
    min_tokens: int | None = _of_sampling(None, metavar="N", min=0, help="End no answer before N tokens.")
    temperature: float | None = _of_sampling(
        None, "-t", metavar="X", help="0 is greedy, 1 as the model says; 0.7 in a chat unless the model's files say it."
    )
    top_p: float | None = _of_sampling(None, metavar="X", help="Draw from the likeliest share X.")
    top_k: int | None = _of_sampling(None, metavar="N", help="Draw from the N likeliest.")
    min_p: float | None = _of_sampling(None, metavar="X", help="Drop tokens below X times the likeliest.")
    repetition_penalty: float | None = _of_sampling(None, metavar="X", help="Above 1 discourages repeats.")
    presence_penalty: float | None = _of_sampling(
        None, metavar="X", help="Above 0 discourages what the answer has said."
    )
    frequency_penalty: float | None = _of_sampling(
        None, metavar="X", help="Above 0 discourages it more for each time it was said."
    )
    logit_bias: tuple[str, ...] = _of_sampling(
        (),
        metavar="ID=X",
        parse=read_biases,
        from_settings=False,
        help="Add X, from -100 to 100, to the logit of token ID; may be given several times.",
    )
    seed: int | None = _of_sampling(None, metavar="N", help="Same seed, same answer.")
    stop: tuple[str, ...] = _of_sampling(
        (), metavar="TEXT", parse=read_stop, help="End the answer before TEXT; may be given several times."
    )
    json_schema: str | None = _of_sampling(
        None,
        metavar="FILE|JSON",
        parse=read_schema,
        from_settings=False,
        help="Answer in JSON by this schema; needs the extra json.",
    )
    json_object: bool = _of_sampling(
        False, from_settings=False, help="Answer with a JSON object; needs the extra json."
    )
    regex: str | None = _of_sampling(
        None, metavar="REGEX", parse=read_text, from_settings=False, help="Answer with what REGEX matches as a whole."
    )
    choice: tuple[str, ...] = _of_sampling(
        (), metavar="TEXT", parse=read_text, from_settings=False, help="Answer with this TEXT or another --choice."
    )
    logprobs: int | None = _of_sampling(
        None,
        metavar="N",
        min=0,
        max=20,
        from_settings=False,
        help="Add the log probability of each token, and of the N likeliest in its place, to the JSON.",
    )
    greedy: bool = _of_sampling(False, against="temperature", help="Always the likeliest token; --temperature 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """The thinking and the run record, beside the answer."""

    show_thinking: bool = option(False, help="Show the thinking, on stderr.")
    report: str = option(
        "auto",
        metavar="PATH|auto|none",
        parse=read_report,
        help="Where the run record goes; auto is the state folder.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """The input of a batch, its output, and the limits of the run.

    `out_format` None mirrors each line; `resume` to `retry_errors` say what becomes of records that are in the file.
    """

    input: str = argument(metavar="INPUT", help="JSON lines, plain lines, CSV, TSV or Parquet; - is stdin.")
    model: str | None = model_option()

    output: str | None = _of_output(
        None,
        "-o",
        metavar="PATH|-",
        from_settings=False,
        shown_default="stdout if redirected, else <input>.out.jsonl",
        help="Where the records go.",
    )
    format: Literal["auto", "openai", "simple", "text", "csv", "tsv", "parquet"] = _of_input(
        "auto",
        help="auto goes by the name (.csv, .tsv, .txt, .parquet), else JSON lines, their form told line by line.",
    )
    escape: bool = _of_input(False, help="In plain lines, \\n stands for a newline.")
    prompt_column: str = _of_input("prompt", metavar="NAME", help="The column of a table to answer.")
    ignore_unsupported: bool = _of_input(
        False, help="Answer lines that ask for what is not supported, without it; else they fail."
    )
    skip: int = _of_input(0, metavar="N", min=0, from_settings=False, help="Leave out the first N records.")
    limit: int | None = _of_input(None, metavar="N", min=0, from_settings=False, help="Take at most N records.")
    shard: str | None = _of_input(
        None,
        metavar="I/N",
        from_settings=False,
        help="Take the I-th of N shares of the ids, from 1/N; before --skip and --limit.",
    )

    out_format: Literal["openai", "simple", "text"] | None = _of_output(
        None,
        shown_default="as each line came",
        help="text is one answer per line, newlines as \\n, in input order; it cannot be resumed.",
    )
    resume: bool = _of_output(True, help="Go on in an output file that exists, or refuse to.")
    force_resume: bool = _of_output(False, from_settings=False, help="Go on although settings or input have changed.")
    overwrite: bool = _of_output(False, from_settings=False, help="Start an output file that exists over.")
    retry_errors: bool = _of_output(False, from_settings=False, help="Run the failed records of an output file again.")
    repair: bool = _of_output(
        False, from_settings=False, help="Keep the whole records of a damaged output file, which is INPUT; run nothing."
    )
    ordered: bool = _of_output(False, help="Write records in the order of the input.")

    batch_size: str = _of_run(
        "auto", metavar="auto|N", parse=read_batch_size, help="At most this many answers at once."
    )
    devices: str | None = _of_run(
        None,
        metavar="LIST",
        parse=read_devices,
        against="device",
        help="A worker on each of these devices, each with its own model and KV budget: cuda:0,cuda:1, or cpu:2 for "
        "two on the CPU.",
    )
    ray: str | None = _of_run(
        None,
        metavar="auto|local|ADDRESS",
        against="devices",
        help="Workers on the machines of a Ray cluster: the one of this machine (auto), another, or one of the batch's "
        "own; needs the extra ray.",
    )
    workers: int | None = _of_run(
        None, metavar="N", min=1, shown_default="one per GPU, else per machine", help="Workers on Ray, one GPU each."
    )
    prefix_cache: bool = _of_run(True, help="Feed beginnings that prompts share once.")
    dedupe: bool = _of_run(False, help="Run equal greedy requests once; keeps answers in memory.")
    retries: int = _of_run(1, metavar="N", min=0, help="Where memory or a policy fails, try a record alone this often.")
    timeout: float = _of_run(3600.0, metavar="SECONDS", parse=read_seconds, help="Fail a record that takes longer.")
    max_time: float | None = _of_run(
        None, metavar="SECONDS", parse=read_seconds, help="Stop after this long (exit 124)."
    )
    max_errors: int | None = _of_run(None, metavar="N", min=1, help="Stop at N failed records (exit 5).")
    fail_fast: bool = _of_run(False, help="Stop at the first failed record.")
    dry_run: bool = _of_run(
        False, from_settings=False, help="Check the input, count its tokens and plan the memory; load no weights."
    )
    progress: Literal["auto", "bar", "lines", "none"] = _of_run("auto", help="How stderr tells how far it is.")
    summary: str | None = _of_run(
        None, metavar="PATH", from_settings=False, parse=read_summary_name, help="Write the counts at the end as JSON."
    )
