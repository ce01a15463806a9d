"""What the operator costs at scale: see `tests.bench.operator.bench`."""

from tests.bench.operator.bench import main

if __name__ == "__main__":
    main()
