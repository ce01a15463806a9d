"""Tokens per second of the built-in trainer beside a training loop written by hand, in plain PyTorch.

    python -m tests.bench.bench_trainer [--quick]

Both train the same model on the same tokens in the same processes, in turns of less than a second, so that whatever
else the machine does meets both. The ratio is the median over the pairs of turns; the middle half of the pairs stands
beside it. Writes build/bench/trainer.json.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "build/bench/trainer.json"


@dataclass(frozen=True)
class Case:
    """A model and a layout."""

    name: str
    processes: int
    threads: int
    preset: str
    sequence_length: int
    global_batch: int
    steps: int
    """Steps of one turn."""
    pairs: int


CASES = (
    Case("nano, 1 process x 2 threads", 1, 2, "nano", 128, 16, steps=5, pairs=41),
    Case("tiny, 1 process x 2 threads", 1, 2, "tiny", 256, 8, steps=1, pairs=31),
    Case("nano, DDP 2 processes x 1 thread", 2, 1, "nano", 128, 16, steps=5, pairs=41),
    Case("tiny, DDP 2 processes x 1 thread", 2, 1, "tiny", 256, 8, steps=1, pairs=31),
)
QUICK = (
    Case("nano, 1 process x 1 thread, quick", 1, 1, "nano", 32, 4, steps=5, pairs=2),
    Case("nano, DDP 2 processes x 1 thread, quick", 2, 1, "nano", 32, 4, steps=5, pairs=2),
)


def main(arguments: list[str] | None = None) -> None:
    """Measure all cases, print a table, write the result."""
    parser = argparse.ArgumentParser(description="Tokens per second of the trainer beside a plain loop.")
    parser.add_argument("--quick", action="store_true", help="only show that the benchmark works")
    cases = QUICK if parser.parse_args(arguments).quick else CASES
    print(f"{'case':<42}{'trainer':>10}{'plain loop':>12}  tokens/s   ratio (middle half of the pairs)")
    rows = []
    for case in cases:
        row, ratios = measure(case)
        rows.append(row)
        low, _, high = statistics.quantiles(ratios, n=4)
        spread = f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"
        print(f"{case.name:<42}{row['value']:>10,.0f}{row['reference_value']:>12,.0f}{'':12}{spread}", flush=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")


def measure(case: Case) -> tuple[dict[str, Any], list[float]]:
    """One line of the result, and the ratio of each pair of turns."""
    with tempfile.TemporaryDirectory() as folder:
        pairs: list[tuple[float, float]] = json.loads(run_workers(case, Path(folder)))
    ratios = [trainer / plain for trainer, plain in pairs]
    row = {
        "case": case.name,
        "value": statistics.median(trainer for trainer, _ in pairs),
        "unit": "tokens/s",
        "reference": "plain PyTorch loop",
        "reference_value": statistics.median(plain for _, plain in pairs),
        "ratio": statistics.median(ratios),
    }
    return row, ratios


def run_workers(case: Case, folder: Path) -> str:
    """Standard output of rank 0."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(case.threads),
        "WORLD_SIZE": str(case.processes),
        "LOCAL_WORLD_SIZE": str(case.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TRAINYARD_CACHE": str(folder),
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "tests.bench.trainer_worker", json.dumps(asdict(case))]
    processes = [
        subprocess.Popen(
            command,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(case.processes)
    ]
    output, _ = processes[0].communicate()
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"{case.name}: the processes ended with {codes}")
    return output


if __name__ == "__main__":
    main()
