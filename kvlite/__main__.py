"""The command `kvlite`, also as `python -m kvlite`."""

import signal
from typing import NoReturn


def run() -> NoReturn:
    """Run the program with the process's own arguments and end the process.

    Until what turns Ctrl-C into one line is there, it ends the process as it ends any.
    """
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so in the background
    if is_heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from kvlite.cli import run_as_process

    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_as_process()


if __name__ == "__main__":
    run()
