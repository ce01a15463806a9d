"""`make soak`: ten minutes of random faults, or SECONDS. The seed is printed, and can be set."""

import argparse
import random
import shutil
from pathlib import Path

from tests.soak.soak import soak


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--folder", type=Path, default=Path("build/soak"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    print(f"seed {arguments.seed}, {arguments.seconds:.0f} s, in {arguments.folder}", flush=True)
    print(soak(arguments.seconds, arguments.seed, arguments.folder, lambda text: print(text, flush=True)))


if __name__ == "__main__":
    main()
