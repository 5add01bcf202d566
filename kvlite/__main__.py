"""`python -m kvlite` is the command `kvlite`."""

from kvlite.cli import run_as_process

if __name__ == "__main__":
    run_as_process()
