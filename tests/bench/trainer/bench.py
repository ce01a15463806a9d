"""Tokens per second and memory of the built-in trainer, beside a loop written by hand and beside frameworks.

    python -m tests.bench.trainer [--quick] [--only SUBSTRING]

All programs of a case train the same model on the same text with the same batch and optimizer, in processes of their
own that are started together and take turns of a second or so; while one trains, the others wait. So whatever else the
machine does meets all of them, and the ratio is the median over the rounds (or over several starts, where a percent
matters); the middle half stands beside it. Writes build/bench/trainer.json.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import harmonic_mean

from tests.bench.trainer.cases import Case, Program
from tests.bench.trainer.layouts import DDP, FOUR, TWO, Layout, reference_of
from tests.bench.trainer.memory import MEMORY_MODEL, peak_memory
from tests.bench.trainer.suite import QUICK_MODEL, quick_suite, whole_suite
from tests.bench.trainer.table import HEADER, Row, line, make_row, speed_row
from tests.bench.trainer.torchtitan import interpreter
from tests.bench.trainer.turns import Speeds, rounds

RESULT = Path(__file__).parents[3] / "build/bench/trainer.json"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description="The built-in trainer beside other programs.")
    parser.add_argument("--quick", action="store_true", help="only show that the benchmark works")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only cases whose name has this in it")
    options = parser.parse_args(arguments)
    print(HEADER, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for row, text in _measure(options.quick, options.only, cache):
            print(text, flush=True)
            rows.append(row)
    if not rows:
        parser.error(f"--only: no case has '{options.only}' in its name")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")


def _measure(quick: bool, only: str, cache: str) -> Iterator[tuple[Row, str]]:
    for case in quick_suite() if quick else whole_suite():
        if only in case.name:
            yield from _speed(case, cache)
    yield from _memory(TWO[:1] if quick else (DDP, *TWO, *FOUR), quick, only, cache)


def _speed(case: Case, cache: str) -> Iterator[tuple[Row, str]]:
    """The subject of a case beside each of its references."""
    there = tuple(program for program in case.programs if _is_there(program))
    speeds = list(rounds(case, there, cache)) if case.starts == 1 else list(_starts(case, there, cache))
    values = [speed[case.subject] for speed in speeds]
    for reference in case.references:
        others = [speed[reference] for speed in speeds] if reference in there else None
        yield speed_row(case.name, values, reference.label, others)


def _is_there(program: Program) -> bool:
    if program.kind == "torchtitan":
        return interpreter() is not None
    return program.kind in ("trainyard", "unmeasured", "plain") or find_spec(program.kind) is not None


def _starts(case: Case, programs: tuple[Program, ...], cache: str) -> Iterator[Speeds]:
    """Speeds over all rounds of each start; in every second one the last program starts first."""
    for number in range(case.starts):
        speeds = list(rounds(case, programs if number % 2 == 0 else programs[::-1], cache))
        yield {program: harmonic_mean(speed[program] for speed in speeds) for program in programs}


def _memory(layouts: tuple[Layout, ...], quick: bool, only: str, cache: str) -> Iterator[tuple[Row, str]]:
    """The largest rank in each layout beside that of DDP on as many processes."""
    known: dict[str, float] = {}

    def peak(layout: Layout) -> float:
        if layout.name not in known:
            known[layout.name] = peak_memory(layout, cache, QUICK_MODEL if quick else MEMORY_MODEL, 2 if quick else 3)
        return known[layout.name]

    for layout in layouts:
        name = f"memory per rank, {layout.name}"
        if only in name and not layout.servers:
            reference = reference_of(layout)
            row = make_row(name, peak(layout), "MiB", reference.name, peak(reference))
            yield row, line(row)
