"""Workers as Ray actors, on this machine or on those of a cluster: one for each GPU, or with processors of its own."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from kvlite.batch.workers.messages import Link, Order, Report, Setup, WorkerDied
from kvlite.batch.workers.worker import Worker
from kvlite.errors import MissingPackage, UsageError

LOCAL = "local"
_REACH_S = 10.0
_LOOK_EVERY_S = 0.02


class RayLink:
    """An actor and the report that is awaited of it."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.awaited: Any = None
        self._ray, self._actor = ray, actor

    def send(self, order: Order) -> None:
        """Send an order."""
        with _signals_as_they_are():
            self.awaited = self._actor.exchange.remote(order)

    def receive(self) -> Report:
        """The report that answers the order, waited for. Raises WorkerDied."""
        try:
            with _signals_as_they_are():
                report: Report = self._ray.get(self.awaited)
        except self._ray.exceptions.RayError as error:
            self.close()
            raise WorkerDied(_reason(error)) from None
        return report

    def close(self) -> None:
        """End the actor."""
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(self._actor)


class RayActors:
    """An actor for each of `num_workers`, or for each GPU or machine there is, on the cluster at `address`.

    `auto` is a cluster that this machine belongs to, `local` one of this process's own, which ends with it. Ray chooses
    the machines. No more than `most` start. Raises MissingPackage without ray, UsageError where there is no cluster or
    not enough of it.
    """

    def __init__(self, address: str, num_workers: int | None, setup: Setup, most: int | None = None) -> None:
        self._ray = ray = _import_ray()
        self._ending = ExitStack()
        self._links: list[RayLink] = []
        try:
            self._ending.enter_context(redirect_stdout(sys.stderr))  # Ray writes to stdout, which is for records
            _connect(ray, address, num_workers)
            self._ending.callback(ray.shutdown)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            placed = placement(setup.options.device, nodes, num_workers)
        except BaseException:
            self._ending.close()
            raise
        self.sharers = placed.sharers
        self.labels: Sequence[str] = ([placed.device] * placed.workers)[:most]
        self._arguments = replace(setup, options=replace(setup.options, device=placed.device)), Path.cwd()
        self._actors = ray.remote(_Actor).options(num_cpus=placed.cpus, num_gpus=placed.gpus, max_restarts=0)

    def start(self, number: int) -> RayLink:
        """Start worker `number` as a new actor, which may have to wait for room in the cluster."""
        link = RayLink(self._ray, self._actors.remote(*self._arguments))
        self._links.append(link)
        return link

    def wait(self, links: Sequence[Link], timeout_s: float) -> list[Link]:
        """Those of `links` whose report is there, or whose actor is gone."""
        by_report = {link.awaited: link for link in links if isinstance(link, RayLink)}
        ends_s = time.monotonic() + timeout_s
        while True:
            with _signals_as_they_are():
                ready, _ = self._ray.wait([*by_report], num_returns=len(by_report), timeout=0)
            if ready or time.monotonic() >= ends_s:
                return [by_report[report] for report in ready]
            time.sleep(_LOOK_EVERY_S)

    def close(self) -> None:
        """End all actors, and the cluster where it is this process's own."""
        for link in self._links:
            link.close()
        self._links.clear()
        self._ending.close()


class Placement(NamedTuple):
    """So many `workers` on `device`, each with `cpus` and `gpus`; at most `sharers` of them share the memory of one."""

    device: str
    workers: int
    cpus: float
    gpus: int
    sharers: int


def placement(asked: str, nodes: Sequence[Mapping[str, float]], num_workers: int | None) -> Placement:
    """The place for workers on machines with such resources, `asked` being the device. Raises UsageError."""
    num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if asked not in ("auto", "cuda", "cpu"):
        raise UsageError(f"--device {asked}: Ray chooses which device a worker gets; give cuda or cpu")
    if asked == "cuda" and not num_gpus:
        raise UsageError("--device cuda: the cluster has no GPU; give --device cpu")
    if asked == "cuda" or (asked == "auto" and num_gpus):
        count = num_workers or num_gpus
        if count > num_gpus:
            raise UsageError(f"--workers {count} are more than the {num_gpus} GPUs of the cluster; give fewer")
        return Placement("cuda", count, 1, 1, 1)
    count = num_workers or len(nodes)
    cpus = [node.get("CPU", 0) for node in nodes]
    for each in range(int(max(cpus)), 0, -1):
        if sum(int(processors) // each for processors in cpus) >= count:
            return Placement("cpu", count, each, 0, int(max(cpus)) // each)
    of_one = -(-count // max(1, sum(map(int, cpus))))  # several share a processor
    return Placement("cpu", count, int(10000 / of_one) / 10000, 0, of_one * max(1, int(max(cpus))))


class _Actor(Worker):
    """A worker in the folder of the batch, where there is one of that name, so that paths of files mean the same."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        with suppress(OSError):
            os.chdir(folder)
        super().__init__(setup)
        Thread(target=self.work, name="answers", daemon=True).start()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingPackage('--ray needs ray; `pip install "kvlite-llm[ray]"`') from error
    return ray


def _connect(ray: Any, address: str, num_workers: int | None) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    how: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == LOCAL:
        how |= {"include_dashboard": False, "num_cpus": max(num_workers or 1, os.cpu_count() or 1)}
    try:
        if match := re.fullmatch(
            r"(?:ray://)?\[?(.+?)\]?:(\d+)", address
        ):  # Ray itself would wait for a machine for ever
            socket.create_connection((match[1], int(match[2])), timeout=_REACH_S).close()
        with _own_signals():
            ray.init(address=address, **how)
    except (ValueError, RuntimeError, OSError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "start one with `ray start --head`, or give --ray local"
        raise UsageError(f"--ray {address}: no cluster answers ({reason}); {hint}") from error


@contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Within the block, which calls Ray, let through what a signal raises; Ray's compiled code makes a SystemError."""
    try:
        yield
    except SystemError as error:
        raise error.__cause__ or error from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Take back the signals that Ray handles itself: SIGTERM has to end the batch as it does without Ray."""
    held = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"failed ({type(cause).__name__}: {cause})".splitlines()[0]
    where = getattr(error, "node_ip", None)
    return "was lost" + (f" on {where}" if where else "") + f" ({str(error).splitlines()[0].rstrip('.')})"
