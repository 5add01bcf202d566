"""A model's generation_config.json as this program applies it, and what of it is not applied. Loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvlite.engine.request import NO_RULES, Sampling, TokenRules
from kvlite.errors import BrokenModel, UsageError

_OF_SAMPLING = {"temperature": float, "top_k": int, "top_p": float, "min_p": float}
_NOT_APPLIED = (
    "num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "penalty_alpha", "dola_layers",
    "guidance_scale", "sequence_bias", "min_length", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "watermarking_config", "num_return_sequences", "constraints", "force_words_ids", "max_time",
)  # fmt: skip
_NOT_APPLIED_TO_DRAWS = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
_NEUTRAL: tuple[Any, ...] = (None, False, 0, 1, [], {})


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """Settings of answers that a model asks for: sampling, rules on tokens, and the most tokens of an answer."""

    sampling: Sampling = field(default_factory=Sampling)
    rules: TokenRules = NO_RULES
    max_tokens: int | None = None


def model_defaults(generation: Mapping[str, Any], given: Collection[str] = ()) -> ModelDefaults:
    """Read a generation_config.json; greedy where it asks for no sampling.

    The sampling settings that are `given` otherwise are not read. Raises BrokenModel where a value cannot be.
    """
    sampling = _sampling({name: value for name, value in generation.items() if name not in given})
    rules = TokenRules(
        suppress_tokens=_ids(generation, "suppress_tokens"),
        begin_suppress_tokens=_ids(generation, "begin_suppress_tokens"),
        bad_words_ids=_words(generation, "bad_words_ids"),
        no_repeat_ngram_size=_count(generation, "no_repeat_ngram_size"),
        min_new_tokens=_count(generation, "min_new_tokens"),
    )
    most = _count(generation, "max_new_tokens")
    return ModelDefaults(sampling, NO_RULES if rules == NO_RULES else rules, most or None)


def not_applied(generation: Mapping[str, Any], window: int | None) -> list[str]:
    """Name what a generation_config.json asks for and this program does not do, as `num_beams 4`.

    A `max_length` counts the prompt, too; from `window` on it limits nothing that the model could take.
    """
    return [f"{name} {generation[name]!r:.40}" for name in _asked(generation, window)]


def _asked(generation: Mapping[str, Any], window: int | None) -> Iterator[str]:
    names = _NOT_APPLIED + (_NOT_APPLIED_TO_DRAWS if generation.get("do_sample") else ())
    yield from (name for name in names if generation.get(name) not in _NEUTRAL)
    longest = generation.get("max_length")
    if isinstance(longest, int) and longest < (window or 0) and not generation.get("max_new_tokens"):
        yield "max_length"


def _sampling(generation: Mapping[str, Any]) -> Sampling:
    kinds: dict[str, type] = {"repetition_penalty": float}
    if generation.get("do_sample"):
        kinds |= _OF_SAMPLING
    sampling = Sampling(temperature=1.0) if "temperature" in kinds else Sampling()
    for name, kind in kinds.items():
        value = generation.get(name)
        if value is None or (name, value) == ("top_k", -1):  # vLLM's word for all of them
            continue
        try:
            sampling = replace(sampling, **{name: kind(value)})
        except (ValueError, TypeError, OverflowError) as error:
            raise _wrong(name, value, "a number") from error
        except UsageError as error:
            raise BrokenModel(f"generation_config.json: {error}") from error
    return sampling


def _ids(generation: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = generation.get(name)
    if not _are_ids(value or []):
        raise _wrong(name, value, "a list of token ids")
    return tuple(value or ())


def _words(generation: Mapping[str, Any], name: str) -> tuple[tuple[int, ...], ...]:
    value = generation.get(name)
    if not isinstance(value or [], list) or not all(word and _are_ids(word) for word in value or ()):
        raise _wrong(name, value, "a list of lists of token ids")
    return tuple(tuple(word) for word in value or ())


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(index) is int and index >= 0 for index in value)


def _count(generation: Mapping[str, Any], name: str) -> int:
    value = generation.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise _wrong(name, value, "a whole number from 0")
    return value or 0


def _wrong(name: str, value: object, expected: str) -> BrokenModel:
    return BrokenModel(f"generation_config.json: {name} is {value!r:.80}; expected {expected}")
