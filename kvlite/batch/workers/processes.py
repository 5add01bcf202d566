"""Workers as processes of this machine, each behind a pipe: where the batch's process ends, it closes, and they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.resource_tracker import ensure_running
from threading import Thread

from kvlite.batch.workers.messages import Link, Order, Report, Setup, WorkerDied
from kvlite.batch.workers.worker import Worker

_END_S = 2.0  # that a process has to end by itself


class ProcessLink:
    """A process and the batch's end of its pipe."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.pipe, self._process = pipe, process

    def send(self, order: Order) -> None:
        """Send an order; where the process is gone, `receive` says so."""
        with suppress(OSError):
            self.pipe.send(order)

    def receive(self) -> Report:
        """The report that answers the order, waited for. Raises WorkerDied."""
        try:
            report: Report = self.pipe.recv()
        except (EOFError, OSError):
            self.close()
            raise WorkerDied(self._ending()) from None
        return report

    def hang_up(self) -> None:
        """Close the pipe, which ends the process."""
        self.pipe.close()

    def close(self) -> None:
        """Close the pipe and see to it that the process ends."""
        self.hang_up()
        self._process.join(_END_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def _ending(self) -> str:
        code = self._process.exitcode or 0
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


class Processes:
    """A process for each of `setups`."""

    def __init__(self, setups: Sequence[Setup]) -> None:
        self._setups = setups
        self._links: list[ProcessLink] = []

    @property
    def labels(self) -> Sequence[str]:
        """The device of each process."""
        return [setup.options.device for setup in self._setups]

    @property
    def sharers(self) -> None:
        """None: processes of one label share that device."""

    def start(self, number: int) -> ProcessLink:
        """Start worker `number` in a new process."""
        context = get_context("spawn")  # of a fork, CUDA and the threads of torch would be broken
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._setups[number]), daemon=True)
        ensure_running()  # multiprocessing's own process, whose start would let Ctrl-C through again
        with theirs, _without_interrupts():
            process.start()
        link = ProcessLink(process, ours)
        self._links.append(link)
        return link

    def wait(self, links: Sequence[Link], timeout_s: float) -> list[Link]:
        """Those of `links` whose report is there, or whose process is gone."""
        by_pipe = {link.pipe: link for link in links if isinstance(link, ProcessLink)}
        return [by_pipe[pipe] for pipe in wait(by_pipe, timeout_s) if isinstance(pipe, Connection)]

    def close(self) -> None:
        """End all processes."""
        for link in self._links:
            link.hang_up()
        for link in self._links:
            link.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Within the block Ctrl-C waits, and a process that is started leaves it to the batch."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, setup: Setup) -> None:
    """Be a worker until the other end of the pipe is closed, which it is when the batch's process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the batch ends its workers
    with suppress(OSError):  # stdout is for the batch's records
        os.dup2(2, 1)
    if setup.threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(setup.threads))  # torch reads it when it is loaded
    worker = Worker(setup)
    messages = Thread(target=_exchange, args=(pipe, worker), name="messages", daemon=True)
    messages.start()
    worker.work()
    messages.join()  # what ended the work is still to be told


def _exchange(pipe: Connection, worker: Worker) -> None:
    with suppress(EOFError, OSError):
        while True:
            pipe.send(worker.exchange(pipe.recv()))
    os._exit(0)
