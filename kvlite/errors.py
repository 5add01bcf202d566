"""The errors kvlite raises on purpose, each with its exit code. Knows nothing else of kvlite.

KvliteError                 1
├── OutputError             1    the output cannot be written, the disk is full
├── NumericError            1    the model computed something that is no number
├── UsageError              2    a bad flag, setting or input file
├── ModelError              3    the model cannot be had or used
│   ├── ModelNotFound
│   ├── GatedModel
│   ├── HubUnreachable           offline, or the download failed
│   ├── BrokenModel              config.json, weights or tokenizer cannot be read
│   └── UnsupportedModel         kvlite cannot hold this family inside a budget
├── CapacityError           4    it does not fit
│   ├── DoesNotFit               weights or budget exceed the device
│   ├── BudgetTooSmall           fewer slots than the protected tokens need
│   ├── SlotsTooCoarse           the model does not survive slots of so few bits
│   ├── ContextFull              no slot or position left and eviction is not allowed
│   └── OutOfMemory              the device refused an allocation
├── BatchFailed             5    a batch finished with failed lines
├── GateFailed              6    `report --fail-on` or `--compare`
├── TimeLimit             124    `--max-time` passed
├── Interrupted           130    Ctrl-C
└── Terminated            143    SIGTERM

A message is one line: what was wrong, the value, what to do.
"""


class KvliteError(Exception):
    """A mistake or limit the user can act on; its text is one line and `exit_code` ends the process."""

    exit_code = 1


class OutputError(KvliteError):
    """The output cannot be written."""


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
    """The files are not in the cache and the Hub cannot be reached, or must not be."""


class BrokenModel(ModelError):
    """A file of the model is missing, truncated or malformed."""


class UnsupportedModel(ModelError):
    """The model loads but its attention cannot be bounded by kvlite."""


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
