"""Triton's kernels are tried in a process of their own while the weights are read, once for a device and its software.

An illegal access, a hang or a segfault ends that process and not this one. A trial is marked as running before it
begins, so that one which takes the machine along is not begun again. What the machine lacks is no fault of kernels, and
kept for nobody.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from threading import Thread
from typing import Any

import torch

from kvlite.memory.shape import ModelShape
from kvlite.record.findings import Circumstances
from kvlite.record.measure import device_reading, versions
from kvlite.record.trials import Trial, Trials, kernels_stamp
from kvlite_kernels.choice import obstacle
from kvlite_kernels.trial.task import MODULES, Part, Task

COMMAND = (sys.executable, "-P", "-m", "kvlite_kernels.trial.process")
START_S, STALL_S = 120.0, 90.0
"""The longest until a process begins to try, and for one kernel to be compiled and run; a longer silence is a hang."""


KILL_S = 5.0
"""The longest until a process that is killed is gone."""

ENDED_BY_OTHERS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
"""Signals of a user, or of a system without memory: they say nothing about kernels."""

PROCESS_BYTES = 3 * 2**29
"""Memory that a process which tries takes on a device."""


@dataclass(frozen=True, slots=True)
class TrialSetting:
    """The place of trials and all that they depend on beside the kernels: the command is another one in tests."""

    command: Sequence[str] = COMMAND
    stall_s: float = STALL_S


def may_try(kernels: str, device: torch.device) -> bool:
    """True where `--kernels` leaves it to a trial what runs on `device`."""
    return kernels == "auto" and device.type == "cuda"


class KernelTrials:
    """Trials of the kernels that a model of `shape` needs on `device`; what `store` knows is not tried again.

    `captures`: decode steps may be CUDA graphs. `say` is told before one that takes a while. `likely` are the parts
    that are tried while the weights are read.
    """

    def __init__(
        self,
        shape: ModelShape,
        device: torch.device,
        store: Trials,
        say: Callable[[str], None] = lambda text: None,
        captures: bool = False,
        likely: Sequence[Part] = (),
        setting: TrialSetting | None = None,
    ) -> None:
        heads = {(shape.query_heads, layer.kv_heads, layer.k_dim, layer.v_dim) for layer in shape.layers}
        known = tuple(sorted(sizes for sizes in heads if sizes[1]))
        self._task = Task(str(device), shape.dtype, known, shape.hidden, shape.intermediate, (), captures)
        self._store, self._say, self._setting = store, say, setting or TrialSetting()
        self.likely = tuple(likely)
        self._found: dict[Part, Trial] = {}
        self._obstacle: str | None = None
        self._begun: set[Part] = set()
        self._attempts: dict[Part, int] = {}
        self._process: TrialProcess | None = None
        self._about = _circumstances(self._task)

    def begin(self, room: int | None) -> None:
        """Begin to try what is likely, where `room` bytes are left for another process on the device; None: enough."""
        if room is not None and room < PROCESS_BYTES:
            self._obstacle = "the weights leave too little memory to try Triton's kernels"
        self.start(self.likely)

    def start(self, parts: Iterable[Part]) -> None:
        """Begin to try what of `parts` nothing is known of, unless it cannot run at all."""
        wanted = []
        for part in parts:
            if (known := self._known(part)) is None:
                wanted.append(part)
            else:
                self._found[part] = known
        if not wanted:
            return
        self._begun.update(wanted)
        self._say("trying Triton's kernels on this device, once; other starts will know")
        for part in wanted:
            running = Trial("running", process=os.getpid(), attempt=self._attempts.get(part, 1))
            self._store.keep(self.about(part), running)
        self._process = TrialProcess(replace(self._task, parts=tuple(wanted)), self._setting)

    def finding(self, part: Part) -> Trial:
        """The outcome for `part`, waiting for it where it is being tried, trying it where it is not."""
        while part not in self._found:
            if self._process is None or not self._process.left:
                self.start([part])
            else:
                self._note(*self._process.next_outcome())
        return self._found[part]

    def outcomes(self) -> list[tuple[str, Trial]]:
        """The results of all that was begun or known, waiting for it."""
        for part in self._begun - self._found.keys():
            self.finding(part)
        return [(str(part), found) for part, found in self._found.items()]

    def condemn(self, part: Part, why: str) -> None:
        """Note that `part` went wrong after its trial."""
        self._note(part, Trial("wrong", why))

    def close(self) -> None:
        """End what is still being tried, as if it had not begun."""
        if self._process is not None:
            self._process.end()
            self._process = None
        for part in self._begun - self._found.keys():
            self._store.forget(self.about(part))

    def about(self, part: Part) -> Circumstances:
        """All that the outcome for `part` depends on."""
        return {"kernels": str(part), **self._about}

    def known_of(self, what: str) -> Trial | None:
        """The outcome that was noted of something else that depends on the same."""
        return self._store.find({"kernels": what, **self._about})

    def note_of(self, what: str, outcome: Trial) -> None:
        """Note an outcome for later starts."""
        self._store.keep({"kernels": what, **self._about}, outcome)

    def _note(self, part: Part, outcome: Trial) -> None:
        self._found[part] = outcome = replace(outcome, attempt=self._attempts.get(part, 1))
        if outcome.state == "unable":  # another start may be
            self._store.forget(self.about(part))
        else:
            self._store.keep(self.about(part), outcome)

    def _known(self, part: Part) -> Trial | None:
        """All that need not be tried: it cannot run, is known, or went wrong in a process that is gone."""
        layers = () if part == MODULES else tuple(self._task.layers())
        if part not in self._begun and (known := self._store.find(self.about(part))) is not None:
            if not known.may_go_on:
                return known
            self._attempts[part] = known.attempt + 1
        if self._obstacle is not None:
            return Trial("unable", self._obstacle)
        if (why := obstacle(self._task.place, layers, [self._task.number])) is not None:
            return Trial("unable", why)
        return self._found.get(part)


class TrialProcess:
    """A process that tries the parts of a task, one after another; `left` are those that it will still come to."""

    def __init__(self, task: Task, setting: TrialSetting) -> None:
        self.left = list(task.parts)
        self._stall_s, self._lines = setting.stall_s, SimpleQueue[str | None]()
        self._at, self._errors = "", TemporaryFile()  # noqa: SIM115
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(  # in a session of its own, which Ctrl-C does not reach
            setting.command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, start_new_session=True
        )
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.write(task.text())
            self._process.stdin.close()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def next_outcome(self) -> tuple[Part, Trial]:
        """The next part that is through, and what came of it; after a death or a hang nothing is left."""
        part = self.left.pop(0)
        while True:
            try:
                line = self._lines.get(timeout=self._stall_s if self._at else START_S)
            except Empty:
                self.end()
                why = f"no answer in time from {self._at or 'the process of a trial'}"
                return part, Trial("running", why, process=self._process.pid)  # or a slow machine: once more
            if line is None:
                why, code = self._last_words(), self._process.wait()
                self.end()
                is_of_kernels = self._at and -code not in ENDED_BY_OTHERS
                return part, Trial("wrong" if is_of_kernels else "unable", why)
            told = _read_line(line)
            self._at = told.get("at", self._at)
            if "part" in told:
                if not self.left:
                    self.end()
                if (fault := told["fault"]) is None:
                    return part, Trial("right", gain=told["gain"])
                return part, Trial("unable" if told["is_unable"] else "wrong", str(fault))

    def end(self) -> None:
        """Kill the process, if it still runs, and let go of its output."""
        self.left = []
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # one inside a driver may not die
            self._process.wait(timeout=KILL_S)
        self._reader.join(timeout=KILL_S)
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        code = self._process.wait()
        ended = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"the trial {ended} at {self._at or 'its start'}" + (f": {said[-1][:200]}" if said else "")


def _read_line(line: str) -> dict[str, Any]:
    """The news of a line; nothing where it is no line of a trial, such as one that a library wrote."""
    with suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict) and ("at" in told or {"part", "fault", "gain", "is_unable"} <= told.keys()):
            return told
    return {}


def _circumstances(task: Task) -> Circumstances:
    known = versions()
    gpu = device_reading(str(torch.cuda.get_device_properties(task.place).uuid)) if task.place.type == "cuda" else None
    return {
        "device": gpu.name if gpu is not None else task.device,
        "driver": gpu.driver if gpu is not None else "",
        "dtype": task.dtype,
        "heads": str(task.heads),
        "sizes": f"{task.hidden}, {task.intermediate}",
        "timed": "graphs" if task.captures else "eager",
        "code": kernels_stamp(),
        **{name: known.get(name, "") for name in ("torch", "triton", "cuda")},
    }
