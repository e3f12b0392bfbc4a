"""`python -m cryosweep` is the command `cryosweep`."""

import sys

from cryosweep.app import main

if __name__ == "__main__":
    sys.exit(main())
