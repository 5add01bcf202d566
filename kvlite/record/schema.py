"""The record of one run, schema "kvlite.report/1": bytes planned and measured, tokens seen, kept and evicted.

Sizes are integers in bytes, times are seconds, None means "not measured here"; NaN is written as that. Unknown fields
are kept, so that a record written by a newer kvlite passes through unchanged. docs/report.md explains every field.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field


def _printable(value: object) -> object:
    """Lone surrogates (an argument that is not UTF-8, a `\\ud800` in JSON) cannot be written; they become `?`."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_printable)]


class Block(BaseModel):
    """A block of the record; a field's docstring becomes its description in the JSON Schema."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, protected_namespaces=())


class ModelIdentity(Block):
    """The weights that ran."""

    alias: Text | None = None
    repo: Text | None = None
    """Hub repository or local folder."""
    revision: Text | None = None
    """Commit of the repository."""
    params: int | None = None
    quant: Text | None = None
    dtype: Text | None = None
    license: Text | None = None
    fused: list[Text] = []
    """The patches in force: modules that ran in fewer, larger operations."""
    refused: list[Text] = []
    """The patches that are not, and why: no code that one was written from, or an error above the bound."""


class HostFacts(Block):
    """The machine and the software."""

    device: Text | None = None
    """`cuda`, `cpu` or `mps`."""
    kernels: Text | None = None
    """The set of kernels that ran."""
    step: Text | None = None
    """Decode steps: `captured` (`captured, prefill eager` and why), or `eager` and what stood in the way."""
    gpu: Text | None = None
    gpu_total_bytes: int | None = None
    driver: Text | None = None
    cuda: Text | None = None
    ram_total_bytes: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class LayerKept(Block):
    """The tokens in one layer when the run ends."""

    layer: int
    kept: float
    """Tokens, the mean over the layer's KV heads."""
    heads: list[int] = Field(default_factory=list)
    """Tokens of each of them."""
    bytes: int


class TurnReport(Block):
    """A turn of a chat, and what of it was kept when the run ended."""

    turn: int
    tokens: int
    kept: float
    """The share of its tokens, the mean over the KV heads of full layers."""
    pinned: bool = False


class KVReport(Block):
    """The cache against its budget; a batch counts tokens over all its answers."""

    budget_bytes: int
    budget_source: Text | None = None
    """`flag`, `env`, `config` or `default`."""
    policy: Text
    dtype: Text
    bytes_per_token: int | None = None
    """K and V of one token over all layers, without policy state."""
    capacity_tokens: int | None = None
    """Slots per KV head of a full-attention layer."""
    reserved_bytes: int
    """Allocated before the first token, staging and policy state included."""
    live_bytes: int
    """Live slots times slot bytes when the run ended."""
    peak_bytes: int
    """The largest `live_bytes` of the run."""
    tokens_seen: int
    tokens_kept: int
    tokens_evicted: int
    full_heads: int | None = None
    """KV heads of full-attention layers without a free slot when the run ended, of `heads`; a batch sums over rows."""
    heads: int | None = None
    full_cache_bytes: int | None = None
    """Bytes that a cache without a budget would have taken."""
    allocated_unused_bytes: int
    """`reserved_bytes` minus the peak, since the budget was changed if it was."""
    policy_state_bytes: int | None = None
    per_layer: list[LayerKept] = Field(default_factory=list)
    """A batch sums over its rows."""
    per_turn: list[TurnReport] = Field(default_factory=list)
    """The turns of a chat."""
    within_budget: bool
    """True when neither the reserved nor the peak bytes ever passed the budget of the time."""


class MemoryTerm(Block):
    """One line of the accounting: planned before, measured after."""

    name: Text
    predicted_bytes: int | None = None
    measured_bytes: int | None = None


class DeviceMemory(Block):
    """total = free + other processes + the measured terms + unaccounted."""

    total_bytes: int
    free_bytes: int
    self_bytes: int | None = None
    other_processes_bytes: int | None = None
    unaccounted_bytes: int | None = None


class TorchMemory(Block):
    """Peaks of torch's CUDA allocator."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int


class PhasePeak(Block):
    """Peak memory of one phase: load, prefill, decode."""

    name: Text
    peak_bytes: int


class MemoryReport(Block):
    """The memory of the run, term by term."""

    terms: list[MemoryTerm] = Field(default_factory=list)
    device: DeviceMemory | None = None
    torch: TorchMemory | None = None
    host_rss_peak_bytes: int | None = None
    phases: list[PhasePeak] = Field(default_factory=list)

    @property
    def measured_on_device(self) -> int:
        """The sum of all measured terms but `checkpoints`, which lie in host memory wherever the model runs."""
        return sum(term.measured_bytes or 0 for term in self.terms if term.name != "checkpoints")


class RequestReport(Block):
    """One answer: a run has one, a chat one per turn, a batch one per line."""

    id: Text
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    tok_s: float | None = None
    kv_peak_bytes: int = 0
    tokens_evicted: int = 0
    drafted_tokens: int = 0
    """Tokens that were guessed from earlier text and verified."""
    accepted_tokens: int = 0
    """Those of them that were right."""
    seed: int | None = None
    total_s: float | None = None
    """Seconds from its row to its end."""
    finish_reason: Text | None = None
    """`stop`, `length`, `cancelled` or `error`."""


class TimelinePoint(Block):
    """The cache at one moment."""

    t_s: float
    tokens_seen: int
    kv_bytes: int
    allocated_bytes: int | None = None
    tokens_generated: int | None = None
    """A batch: the tokens of all answers by then."""
    rows_used: int | None = None
    """A batch: the rows that answered, of `rows`."""
    rows: int | None = None
    budget_bytes: int | None = None
    """The budget of the time."""
    event: Text | None = None


class BatchReport(Block):
    """The counts of a batch."""

    total: int = 0
    ok: int = 0
    failed: int = 0
    resumed: int = 0
    deduped: int = 0
    shared_tokens: int = 0
    """Tokens of prompts that were fed for another prompt which begins alike."""
    drafted_tokens: int = 0
    """Tokens that were guessed from earlier text and verified."""
    accepted_tokens: int = 0
    """Those of them that were right."""
    tokens_per_s: float | None = None
    slowest: list[RequestReport] = Field(default_factory=list)
    """The ten answers that took longest, the longest first."""


class RunRecord(Block):
    """One run of `kvlite run`, `chat`, `batch`, `bench` or `eval`."""

    model_config = ConfigDict(title="kvlite.report/1", populate_by_name=True)

    format: Literal["kvlite.report/1"] = Field(default="kvlite.report/1", alias="schema")
    run_id: Text
    command: Text
    argv: list[Text] = Field(default_factory=list)
    started: AwareDatetime
    ended: AwareDatetime
    exit_code: int
    model: ModelIdentity | None = None
    host: HostFacts = Field(default_factory=HostFacts)
    kv: KVReport | None = None
    """None when the run ended before its cache was made, and for `eval`."""
    memory: MemoryReport = Field(default_factory=MemoryReport)
    requests: list[RequestReport] = Field(default_factory=list)
    """At most 1,000; `requests_left_out` counts the rest."""
    requests_left_out: int = 0
    timeline: list[TimelinePoint] = Field(default_factory=list)
    """Down-sampled while running to at most 1,000 points."""
    batch: BatchReport | None = None
    warnings: list[Text] = Field(default_factory=list)

    @property
    def seconds(self) -> float:
        return (self.ended - self.started).total_seconds()

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return self.model_dump_json(by_alias=True)
