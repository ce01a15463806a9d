"""Entry point of `python -m tests.bench.gpu_check`."""

import sys

from tests.bench.gpu_check.check import main

if __name__ == "__main__":
    sys.exit(main())
