"""From prompts to answers: requests to an engine, whose tokens become pieces of text as they come.

Chat, single answers and Python's `generate` all go this way.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from threading import RLock
from typing import TYPE_CHECKING, Any

from kvlite.engine.request import (
    MOST_LOGPROBS,
    NO_RULES,
    Completion,
    FinishReason,
    Request,
    Sampling,
    Token,
    TokenRules,
)
from kvlite.errors import UsageError
from kvlite.llm.generation import model_defaults
from kvlite.llm.logprobs import TokenLogprob, token_logprobs
from kvlite.options import biases_of
from kvlite.text.grammar import Grammar

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.memory.counts import KVCounts
    from kvlite.options import AnswerOptions
    from kvlite.record.schema import RequestReport
    from kvlite.text.stream import AnswerText, Piece
    from kvlite.text.template import ChatText, Encoded

SEEDS = 2**63  # all that Sampling takes
DRAWN_SEEDS = 2**31  # short enough to read out and type again
CHAT_MAX_TOKENS = 8192  # a small model may go on for ever
BATCH_MAX_TOKENS = 1024
_GRAMMARS: dict[str, Callable[[Any], Grammar]] = {
    "json_schema": Grammar.of_schema,
    "json_object": lambda _: Grammar.of_any_object(),
    "regex": Grammar.of_regex,
    "choice": Grammar.of_choice,
}
_DRAWING = ("temperature", "top_k", "top_p", "min_p", "do_sample")  # settings that greedy answers have no use for


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """Sampling and end of an answer; `max_tokens` None lets the model go on until it ends by itself.

    With `logprobs` each token's log probability is kept, and those of so many of the likeliest. Raises UsageError on
    values out of range, and where `min_tokens` is more than `max_tokens`.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = CHAT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    pin_system: bool = True
    rules: TokenRules = NO_RULES
    grammar: Grammar | None = None
    min_tokens: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; give at least 1, or none for no limit")
        if self.min_tokens < 0:
            raise UsageError(f"min_tokens is {self.min_tokens}; give 0 (off) or a number of tokens")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UsageError(
                f"min_tokens is {self.min_tokens}, more than the {self.max_tokens} of max_tokens; lower it"
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise UsageError(f"logprobs is {self.logprobs}; give a number of likely tokens from 0 to {MOST_LOGPROBS}")

    def changed_as(self, other: AnswerSettings, before: AnswerSettings) -> AnswerSettings:
        """These settings, with the sampling and length that `other` has and `before` had not."""
        drawn = {
            each.name: getattr(other.sampling, each.name)
            for each in fields(Sampling)
            if getattr(other.sampling, each.name) != getattr(before.sampling, each.name)
        }
        max_tokens = self.max_tokens if other.max_tokens == before.max_tokens else other.max_tokens
        return replace(self, sampling=replace(self.sampling, **drawn), max_tokens=max_tokens)

    @classmethod
    def of(
        cls,
        generation: Mapping[str, Any],
        options: AnswerOptions,
        *,
        max_tokens: int = CHAT_MAX_TOKENS,
        pin_system: bool = True,
        unnamed: Sampling | None = None,
    ) -> AnswerSettings:
        """Settings of `options` over those of a generation_config.json; `max_tokens` where neither gives any.

        A model that does not say whether to sample is greedy, or draws as `unnamed` says unless that is asked for. A
        seed nobody gave is drawn, so that it can be told. Raises BrokenModel where the file has a value that cannot
        be and that no option replaces.
        """
        given = sampling_of(options)
        model = model_defaults(generation, _DRAWING if given.get("temperature") == 0 else given)
        base = model.sampling
        if unnamed is not None and generation.get("do_sample") is None and given.get("temperature") != 0:
            base = replace(unnamed, repetition_penalty=base.repetition_penalty)
        sampling = replace(base, **given)
        if "seed" not in given and not sampling.is_greedy:
            sampling = replace(sampling, seed=secrets.randbelow(DRAWN_SEEDS))
        most = options.max_tokens or model.max_tokens or max_tokens
        least = options.min_tokens if options.min_tokens is not None else min(model.rules.min_new_tokens, most)
        return cls(sampling, most, options.stop, pin_system, model.rules, grammar_of(options), least, options.logprobs)

    def request(self, name: str, prompt: Encoded, text: ChatText, *, row: int | None, number: int = 0) -> Request:
        """The engine's request for an answer to `prompt`; answer `number` of a run has that much added to its seed.

        Raises UsageError where the model's tokenizer cannot be read for a grammar.
        """
        sampling = replace(self.sampling, seed=(self.sampling.seed + number) % SEEDS)  # equal draws would rhyme
        pins = prompt.pins if self.pin_system else ()
        guide = None if self.grammar is None else text.guide(prompt, self.grammar)
        rules = replace(self.rules, min_new_tokens=self.min_tokens)
        return Request(
            name,
            prompt.ids,
            sampling,
            self.max_tokens,
            text.stop_ids,
            pins,
            row,
            NO_RULES if rules == NO_RULES else rules,
            guide=guide,
            logprobs=self.logprobs,
        )


def sampling_of(options: AnswerOptions) -> dict[str, Any]:
    """The sampling settings that were given, as fields of Sampling. Raises UsageError on values out of range."""
    if options.greedy and options.temperature:  # NaN is true and is refused with the contradiction
        raise UsageError(f"--greedy contradicts --temperature {options.temperature}; give one of them")
    asked = {one.name: getattr(options, one.name) for one in fields(Sampling)}
    asked["logit_bias"] = biases_of(options.logit_bias) or None
    given = {name: value for name, value in asked.items() if value is not None}
    if options.greedy:
        given["temperature"] = 0.0
    Sampling(**given)  # only to have the ranges checked before anything is loaded
    return given


def grammar_of(options: AnswerOptions) -> Grammar | None:
    """The grammar that answers are to follow. Raises UsageError where it is none, or there are two."""
    asked = {name: value for name in _GRAMMARS if (value := getattr(options, name)) not in (None, False, ())}
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} are both given; an answer follows one of them")
    for name, value in asked.items():
        try:
            return _GRAMMARS[name](value)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
    return None


def check_answer(options: AnswerOptions) -> None:
    """Raises UsageError on what no model can do, before anything is loaded."""
    sampling_of(options)
    grammar_of(options)
    AnswerSettings(max_tokens=options.max_tokens, min_tokens=options.min_tokens or 0, logprobs=options.logprobs)


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer; `seed` is what it was sampled with.

    `ended_itself`: the model ended its turn, no stop string or limit did; `is_thinking`: it was cut off while thinking.
    `logprobs`: those of all its tokens, thinking and what a stop string cut off included, where they were asked for.
    """

    text: str
    thinking: str
    finish_reason: FinishReason
    seed: int
    ended_itself: bool
    is_thinking: bool
    completion: Completion
    logprobs: tuple[TokenLogprob, ...] | None = None

    @classmethod
    def read(cls, completion: Completion, decoder: AnswerText, request: Request) -> Answer:
        """Make the answer to a request that has ended, of the text that `decoder` has read."""
        reason = FinishReason.STOP if decoder.stopped else completion.finish_reason
        return cls(
            text=decoder.text,
            thinking=decoder.thinking,
            finish_reason=reason,
            seed=request.sampling.seed,
            ended_itself=reason is FinishReason.STOP and not decoder.stopped,
            is_thinking=decoder.is_thinking,
            completion=completion,
            logprobs=None if request.logprobs is None else token_logprobs(completion, decoder.tokenizer),
        )

    @property
    def prompt_tokens(self) -> int:
        """Tokens fed for this answer; what the row held before does not count again."""
        return self.completion.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens generated."""
        return len(self.completion.ids)

    @property
    def kv(self) -> KVCounts:
        """The row's slots at the end of the answer."""
        return self.completion.kv

    def report(self) -> RequestReport:
        """The answer's entry in a run record."""
        from kvlite.record.schema import RequestReport

        completion = self.completion
        return RequestReport(
            id=completion.request_id,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            ttft_s=completion.timing.ttft_s,
            tok_s=completion.timing.tok_s,
            total_s=completion.timing.total_s,
            kv_peak_bytes=self.kv.peak_bytes,
            tokens_evicted=completion.evicted,
            drafted_tokens=completion.drafted,
            accepted_tokens=completion.accepted,
            seed=self.seed,
            finish_reason=str(self.finish_reason),
        )


class OneCall:
    """Keeps the other threads out of a `with` block while one is in it: entering raises UsageError there."""

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise UsageError("another thread is being answered; this LLM takes one call at a time")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class TextStream(Iterator[str]):
    """Pieces of an answer's text as they come, at the end its `answer`; raises UsageError once it was given up."""

    def __init__(self, events: Generator[Piece | Answer], one_call: OneCall) -> None:
        self.answer: Answer | None = None
        self._events, self._one_call, self._given_up = events, one_call, ""

    def __next__(self) -> str:
        with self._one_call:
            if self._given_up and self.answer is None:
                raise UsageError(self._given_up)
            for event in self._events:
                if isinstance(event, Answer):
                    self.answer = event
                elif not event.thinking:
                    return event.text
        raise StopIteration

    def close(self, reason: str = "this stream was closed; ask again") -> None:
        """Give the answer up, for a `reason`; the conversation is then read anew with the next call."""
        with self._one_call:
            self._given_up = self._given_up or reason
            self._events.close()


def stream_answer(engine: Engine, request: Request, decoder: AnswerText) -> Generator[Piece | Answer]:
    """Run one request: pieces of text as they are decoded, at the end the Answer.

    Raises the request's own error after the pieces that came before it.
    """
    for _, event in stream_answers(engine, [(request, decoder)]):
        if isinstance(event, Answer) and event.completion.error is not None:
            raise event.completion.error
        yield event


def stream_answers(
    engine: Engine, asked: Iterable[tuple[Request, AnswerText]]
) -> Generator[tuple[str, Piece | Answer]]:
    """Run requests as rows come free: each one's id with its pieces of text, at its end with its Answer.

    An answer that failed says why in its completion.
    """
    running: dict[str, tuple[Request, AnswerText]] = {}

    def requests() -> Iterator[Request]:
        for request, decoder in asked:
            running[request.id] = (request, decoder)
            yield request

    for event in engine.run(requests()):
        name = event.request_id
        request, decoder = running[name]
        if isinstance(event, Token):
            if not decoder.stopped:
                yield from ((name, piece) for piece in decoder.push(event.id))
                if decoder.stopped:
                    engine.cancel(name, FinishReason.STOP)
            continue
        del running[name]
        yield from ((name, piece) for piece in decoder.finish())
        yield name, Answer.read(event, decoder, request)
