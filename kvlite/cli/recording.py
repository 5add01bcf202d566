"""The record of the command that runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kvlite.cli.options import console

if TYPE_CHECKING:
    from kvlite.record.recorder import Recorder


def start_recorder(command: str, report: str) -> Recorder:
    """Start to record `command`, the console's warnings too. Raises UsageError where `report` cannot be written."""
    from kvlite.record.recorder import Recorder

    out = console()
    recorder = Recorder(command, sys.argv[1:], report=report, warn=out.warn)
    out.on_warning = recorder.warning
    return recorder
