"""`python -m spinejax` is the command `spinejax`."""

import sys

from spinejax.cli import main

if __name__ == "__main__":
    sys.exit(main())
