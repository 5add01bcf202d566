"""The record of the command that runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.record.recorder import Recorder


def start_recorder(command: str, report: str, console: Console) -> Recorder:
    """Start to record `command`, the console's warnings too. Raises UsageError where `report` cannot be written."""
    from kvlite.record.recorder import Recorder

    recorder = Recorder(command, sys.argv[1:], report=report, warn=console.warn)
    console.on_warning = recorder.warning
    return recorder
