"""The end of the time is noticed in the midst of anything, and leaves the process's alarm as it was."""

from __future__ import annotations

import signal
import time

import pytest

from kvlite.deadline import Deadline
from kvlite.errors import TimeLimit


@pytest.mark.parametrize("limit_s", [1e-9, 0.01])
def test_the_end_of_the_time_raises_in_the_midst_of_anything(limit_s: float) -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeLimit), Deadline(limit_s).running():
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_no_limit_sets_no_alarm() -> None:
    with Deadline(None).running():
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


class _Seen(Exception):
    pass


def _seen() -> None:
    raise _Seen


@pytest.mark.parametrize("limit_s", [None, 1000.0])
def test_a_watch_is_called_in_the_midst_of_anything_and_the_time_goes_on(limit_s: float | None) -> None:
    deadline = Deadline(limit_s)
    with deadline.running():
        left_s = signal.getitimer(signal.ITIMER_REAL)[0]
        with pytest.raises(_Seen), deadline.watching(_seen):
            time.sleep(60)
        assert 0 <= signal.getitimer(signal.ITIMER_REAL)[0] <= left_s


def test_the_time_ends_while_something_is_watched() -> None:
    deadline = Deadline(0.01)
    with deadline.running(), pytest.raises(TimeLimit), deadline.watching(lambda: None):
        time.sleep(60)
