"""`python -m kvlite` is the command `kvlite`."""

import sys

from kvlite.cli import main

if __name__ == "__main__":
    sys.exit(main())
