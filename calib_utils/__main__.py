"""`python -m calib_utils`: the same chain from a shell. See `calib_utils.book.commands`."""

import sys

from calib_utils.book.commands import main

if __name__ == "__main__":
    sys.exit(main())
