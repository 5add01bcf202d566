"""The errors kvlite raises on purpose, each with its exit code. Knows nothing else of kvlite.

A message is one line: what was wrong, the value, what to do.
"""

import subprocess


class KvliteError(Exception):
    """A mistake or limit the user can act on; its text is one line and `exit_code` ends the process."""

    exit_code = 1


class OutputError(KvliteError):
    """The output cannot be written: its place, or the disk is full."""


class NumericError(KvliteError):
    """The model computed infinities or NaN."""


class UsageError(KvliteError):
    """A flag, a setting or an input is wrong."""

    exit_code = 2


class ModelError(KvliteError):
    """The model cannot be had or cannot be used."""

    exit_code = 3


class ModelNotFound(ModelError):
    """No alias, folder or repository has this name."""


class GatedModel(ModelError):
    """The repository asks for a licence to be accepted first."""


class HubUnreachable(ModelError):
    """The files are not in the cache, and the Hub cannot be reached, must not be, or broke the download off."""


class BrokenModel(ModelError):
    """config.json, the weights or the tokenizer are missing, truncated or malformed."""


class UnsupportedModel(ModelError):
    """The model loads but its attention cannot be bounded by kvlite."""


class MissingPackage(KvliteError):
    """A package of one of kvlite's extras is not installed."""

    exit_code = 3


class CapacityError(KvliteError):
    """Something does not fit into the memory, the budget or the model's window."""

    exit_code = 4


class DoesNotFit(CapacityError):
    """The weights or the budget exceed the device."""


class BudgetTooSmall(CapacityError):
    """The budget holds fewer slots than the protected tokens need."""


class SlotsTooCoarse(CapacityError):
    """The model does not survive slots of so few bits."""


class ContextFull(CapacityError):
    """No slot or position is left and eviction is not allowed."""


class OutOfMemory(CapacityError):
    """The device refused an allocation."""


class BatchFailed(KvliteError):
    """A batch finished with failed lines."""

    exit_code = 5


class GateFailed(KvliteError):
    """A comparison asked for on the command line came out false."""

    exit_code = 6


class TimeLimit(KvliteError):
    """The whole run took longer than `--max-time`."""

    exit_code = 124


class Interrupted(KvliteError):
    """The user pressed Ctrl-C."""

    exit_code = 130


class Terminated(KvliteError):
    """The process was asked to end by SIGTERM."""

    exit_code = 143


def is_of_kernels(error: BaseException) -> bool:
    """True where code or its kernels failed: Triton's compiler and launcher raise errors of their own, and others'."""
    if isinstance(error, KvliteError) or is_out_of_memory(error):
        return False
    of_triton = any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__)
    kinds = RuntimeError | OSError | ValueError | TypeError | AttributeError | LookupError | subprocess.SubprocessError
    return of_triton or isinstance(error, kinds)


_NO_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """True of a refused allocation; drivers and libraries say so in words alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without loading torch
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
