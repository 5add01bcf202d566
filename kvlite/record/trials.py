"""Trials of kernels on a device: they are right and so much faster than torch, or wrong, and why. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from platformdirs import user_state_path

from kvlite.record.findings import Findings

WORTH_IT = 1.03
"""The least gain in speed for kernels that nobody asked for."""

MOST_ATTEMPTS = 2
"""The most trials of the same that are begun where none comes to its end."""

State = Literal["running", "right", "wrong", "unable"]


@dataclass(frozen=True, slots=True)
class Trial:
    """The outcome for kernels that are right or wrong together.

    `gain` is their speed over torch's where they are right, `why` what is wrong, or why they are `unable` to run. One
    that is `running` says in which process, and in which `attempt`: where that is gone, the kernels may have taken it
    along, or did not answer in time. `when` is an ISO time.
    """

    state: State
    why: str = ""
    gain: float = 0.0
    process: int = 0
    when: str = ""
    attempt: int = 1

    @property
    def is_taken(self) -> bool:
        """True where the kernels are right and worth it."""
        return self.state == "right" and self.gain >= WORTH_IT

    @property
    def is_elsewhere(self) -> bool:
        """True while another process tries them."""
        if self.state != "running" or self.process == os.getpid():
            return False
        import psutil  # type: ignore[import-untyped,unused-ignore]

        return bool(psutil.pid_exists(self.process))

    @property
    def may_go_on(self) -> bool:
        """True where a trial was broken off and is to be begun anew: the process is gone, but the machine stayed up."""
        if self.state != "running" or self.is_elsewhere or self.attempt >= MOST_ATTEMPTS:
            return False
        import psutil

        return datetime.fromisoformat(self.when).timestamp() >= float(psutil.boot_time())

    def __str__(self) -> str:
        if self.state == "right":
            slower = "" if self.is_taken else ", not worth it"
            return f"right, {self.gain:.2f}x as fast as torch{slower}"
        if self.state == "running" and not self.why:
            return "another process is trying them" if self.is_elsewhere else "a trial of them never came to its end"
        return f"wrong: {self.why}" if self.state == "wrong" else self.why


@dataclass(frozen=True, slots=True)
class Trials(Findings[Trial]):
    """The folder of trials."""

    folder: Path = field(default_factory=lambda: user_state_path("kvlite", appauthor=False) / "trials")
    again: bool = False

    def _read(self, told: Mapping[str, Any]) -> Trial:
        state = told["state"]
        if state not in get_args(State):
            raise ValueError(state)
        gain, process, attempt = float(told["gain"]), int(told["process"]), int(told["attempt"])
        return Trial(state, str(told["why"]), gain, process, str(told["when"]), attempt)


def kernels_stamp() -> str:
    """A hash of the source of all kernels, and of their trial. Imports none of them."""
    spec, found = find_spec("kvlite_kernels"), sha256()
    assert spec is not None and spec.origin is not None
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
