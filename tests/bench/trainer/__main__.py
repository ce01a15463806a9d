"""Speed and memory of the built-in trainer beside other programs: see `tests.bench.trainer.bench`."""

from tests.bench.trainer.bench import main

if __name__ == "__main__":
    main()
