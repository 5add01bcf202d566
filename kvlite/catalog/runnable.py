"""The one rule for all commands of what can be run here: by config.json and the names of files, without weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kvlite.catalog.config import TOKENIZER_FILES
from kvlite.errors import BrokenModel, UnsupportedModel
from kvlite.memory.shape import ModelShape

# Packages that transformers needs for weights that others have quantised, by what config.json calls the method.
QUANTISERS: Mapping[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitnet": (),
    "bitsandbytes": ("bitsandbytes",),
    "bitsandbytes_4bit": ("bitsandbytes",),
    "bitsandbytes_8bit": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "eetq": ("kernels",),
    "fbgemm_fp8": ("fbgemm-gpu",),
    "fouroversix": ("fouroversix",),
    "fp8": (),
    "fp_quant": ("fp-quant",),
    "gemma": (),
    "gptq": ("optimum", "gptqmodel"),
    "higgs": ("flute-kernel", "fast-hadamard-transform"),
    "mxfp4": (),
    "mxfp8": (),
    "nvfp4": (),
    "quark": ("amd-quark",),
    "sinq": ("sinq",),
    "spqr": ("spqr-quant",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
_APPLIED = ("hqq", "quanto")
"""Methods that transformers 5 applies to plain weights, of which it reads none that are stored so."""
_SENTENCEPIECE = {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"}
_OTHER_HEADS = re.compile(
    r"For((Sequence|Token|Image)Classification|QuestionAnswering|MaskedLM|MultipleChoice|"
    r"\w*(Reward|Retrieval|Embedding|Regression)(Model)?)$|RewardModel$"
)


def runnable_shape(
    config: Mapping[str, Any],
    *,
    model: str,
    base_model: str | None = None,
    dtype: str | None = None,
    stored_dtype: str | None = None,
) -> ModelShape:
    """The shape of the model that `config` describes, as ModelShape.from_config reads it.

    `model` and `base_model`, what it was made from, go into messages. Raises UnsupportedModel where the weights would
    not load, or would be no language model, and what ModelShape raises.
    """
    instead = base_model or "the model it was made from"
    if _is_mlx(config):
        raise UnsupportedModel(f"{model} is an MLX conversion, which only Apple's mlx runs; use {instead}")
    named = config.get("architectures")
    heads = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if heads and all(_OTHER_HEADS.search(name) or _is_bare(name, config) for name in heads):
        raise UnsupportedModel(f"{model} is a {heads[0]}, which generates no text; choose a causal language model")
    _require_ends(config)
    shape = ModelShape.from_config(config, dtype=dtype, stored_dtype=stored_dtype)
    _require_quantiser(config.get("quantization_config"), model, instead)
    return shape


def _require_ends(config: Mapping[str, Any]) -> None:
    """Refuse ids of end tokens that transformers' classes do not take."""
    ends = config.get("eos_token_id")
    if ends is not None and not all(type(one) is int for one in (ends if isinstance(ends, list) else [ends])):
        raise BrokenModel(f"config.json: eos_token_id is {ends!r:.80}; expected a token id, or a list of them")


def require_tokenizer(names: Collection[str], *, model: str) -> None:
    """Raise BrokenModel where `names` has no tokenizer, UnsupportedModel where no package here reads it."""
    if not set(TOKENIZER_FILES).intersection(names):
        raise BrokenModel(f"{model} has no tokenizer (tokenizer.json); copy it from the model it was made from")
    if "tokenizer.json" in names:
        return
    if "tekken.json" in names and not (_SENTENCEPIECE | {"vocab.json"}).intersection(names):
        raise UnsupportedModel(
            f"{model} has its vocabulary in tekken.json alone, which only Mistral's own programs read; "
            "choose a copy of the model that holds a tokenizer.json"
        )
    if not _SENTENCEPIECE.intersection(names):
        return
    missing = [name for name in ("sentencepiece", "protobuf") if not _is_installed(name)]
    if missing:
        raise UnsupportedModel(
            f"{model} has its vocabulary in SentencePiece's form alone, which needs {' and '.join(missing)}; "
            "`pip install 'kvlite-llm[sentencepiece]'`"
        )


def _is_mlx(config: Mapping[str, Any]) -> bool:
    ours, theirs = config.get("quantization"), config.get("quantization_config")
    named = isinstance(theirs, Mapping) and "quant_method" in theirs
    return isinstance(ours, Mapping) and {"group_size", "bits"} <= ours.keys() and not named


def _is_bare(name: str, config: Mapping[str, Any]) -> bool:
    """True of a body without a head, as models of embeddings are."""
    return name.endswith("Model") and not name.endswith("LMHeadModel") and config.get("tie_word_embeddings") is False


def _require_quantiser(settings: object, model: str, instead: str) -> None:
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if method is None and isinstance(settings, Mapping) and {"load_in_4bit", "load_in_8bit"} & settings.keys():
        method = "bitsandbytes"
    if not isinstance(method, str) or method not in QUANTISERS:
        why = "transformers applies to plain weights alone" if method in _APPLIED else "transformers does not load"
        raise UnsupportedModel(f"{model} is quantised by {method or settings!r:.80}, which {why}; use {instead}")
    missing = [name for name in QUANTISERS[method] if not _is_installed(name)]
    if missing:
        raise UnsupportedModel(
            f"{model} is quantised by {method}, which needs {' and '.join(missing)}; "
            f"`pip install {' '.join(missing)}`, or use {instead}"
        )


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
