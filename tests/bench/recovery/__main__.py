"""What failures and checkpoints cost: see `tests.bench.recovery.bench`."""

from tests.bench.recovery.bench import main

if __name__ == "__main__":
    main()
