"""What a failure costs, and what checkpoints cost while nothing fails: `make bench-recovery`.

Everything runs on this machine under the operator's own loop. Ways to recover are measured in turns, so that whatever
else the machine does meets both alike, and the median counts.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.trainer.table import HEADER, Row, line, make_row
from tests.builders import make_job, trainer_spec
from tests.support.local import processes, reports, small_job, until_over, until_step
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Phase
from trainyard_cli.local import local_run

LARGE = {"name": "llama", "preset": "nano", "dim": 640, "layers": 8, "heads": 8, "kvHeads": 8, "ffnDim": 1728}
"""39 million parameters: with two moments of AdamW, in float32, 470 MB."""
SAMPLE = {"name": "llama", "preset": "nano"}


class Recovery(NamedTuple):
    """Seconds from the death of a rank."""

    begun: float
    """Until all processes of the next attempt had been started: what is ours."""
    stepped: float
    """Until its first step was done."""


# --- recovery -------------------------------------------------------------------------------------------------


async def recover(folder: Path, *, in_place: bool) -> Recovery:
    """Kill one of two ranks in mid-run, and wait for the next step."""
    checkpoint = {"claim": {"size": "1Gi"}, "everySteps": 50, "async": False}
    job = small_job("recovery", 100_000, policy={"inPlace": in_place}, checkpoint=checkpoint)
    async with local_run(job, folder) as run:
        await until_step(run, 50, saved=True)
        old = {p.pid for index in range(2) for p in processes(run, index)[1]}
        killed, killed_uptime = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        os.kill(processes(run, 1)[1][0].pid, signal.SIGKILL)
        while not (stepped := _first_step(folder, 2)):
            assert time.time() - killed < 90, run.job.status.conditions
            await asyncio.sleep(0.1)
        ranks = [p for index in range(2) for p in processes(run, index)[1]]
        begun = max(_start_uptime(p.pid) for p in ranks if p.pid not in old)
        assert (run.job.status.pod_attempt_override == 1) == in_place
    return Recovery(begun - killed_uptime, stepped - killed)


def _start_uptime(pid: int) -> float:
    """When a process was started, in seconds of CLOCK_BOOTTIME, to a clock tick (10 ms): proc_pid_stat(5), field 22.

    psutil's create_time() is by the wall clock, for which it adds the time of boot: known in whole seconds only.
    """
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")


def _first_step(folder: Path, attempt: int) -> float | None:
    times = [entry["time"] for entry in reports(folder) if entry["attempt"] == attempt and "loss" in entry]
    return datetime.fromisoformat(min(times)).timestamp() if times else None


def recovery_rows(folder: Path, rounds: int) -> list[Row]:
    """A rank is killed: restarts in place beside restarts with new pods."""
    found: dict[bool, list[Recovery]] = {True: [], False: []}
    for turn in range(rounds):
        for in_place in (True, False):
            where = folder / f"recovery-{turn}-{in_place}"
            found[in_place].append(asyncio.run(recover(where, in_place=in_place)))
    medians = {way: [statistics.median(values) for values in zip(*list_, strict=True)] for way, list_ in found.items()}
    cases = ("SIGKILL of a rank -> ranks forked again", "SIGKILL of a rank -> next step")
    return [
        make_row(f"{case}, in place", ours, "s", "with new pods", other)
        for case, ours, other in zip(cases, medians[True], medians[False], strict=True)
    ]


# --- checkpoints ----------------------------------------------------------------------------------------------


class Stall(NamedTuple):
    """Of one run that saves again and again."""

    seconds: float
    """That training waited for a checkpoint, on average."""
    step_seconds: float
    size: int
    """Bytes of one checkpoint."""


async def stall(folder: Path, model: dict[str, Any], every: int, saves: int, **trainer: Any) -> Stall:
    """Train on one rank, saving in the background every few steps; the first save starts a process, and is left out."""
    job = _saving_job(model, every, every * (saves + 2), **trainer)
    async with local_run(job, folder) as run:
        await until_step(run, every, saved=True, patience=300)
        first = run.job.status.progress
        await until_step(run, every * (saves + 1), saved=True, patience=900)
        last = run.job.status.progress
        assert first is not None
        assert last is not None
    newest = max((folder / "checkpoints").glob("step-*[0-9]"))
    waited = (last.checkpoint_stall_seconds or 0.0) - (first.checkpoint_stall_seconds or 0.0)
    done = ((last.checkpoint_step or 0) - (first.checkpoint_step or 0)) / every
    size = sum(file.stat().st_size for file in newest.iterdir())
    speed = [e["samplesPerSecond"] for e in reports(folder) if "samplesPerSecond" in e]
    return Stall(waited / done, 16 / statistics.median(speed), size)


def _saving_job(model: dict[str, Any], every: int, steps: int, **trainer: Any) -> TrainingJob:
    settings = trainer_spec(model=model, stop={"steps": steps}, logEverySteps=1, **trainer)
    checkpoint = {"claim": {"size": "10Gi"}, "everySteps": every}
    return make_job("saving", replicas=1, trainer=settings, checkpoint=checkpoint)


def checkpoint_rows(folder: Path, saves: int) -> list[Row]:
    """What training waits for checkpoints, which other processes write."""
    sample = asyncio.run(stall(folder / "sample", SAMPLE, 50, saves))
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 64}
    large = asyncio.run(stall(folder / "large", LARGE, 10, saves, data=data))
    return [
        make_row(
            f"stall per checkpoint of {sample.size / 1e6:.0f} MB", sample.seconds, "s", "step", sample.step_seconds
        ),
        make_row(f"stall per checkpoint of {large.size / 1e6:.0f} MB", large.seconds, "s", "step", large.step_seconds),
    ]


# --- goodput --------------------------------------------------------------------------------------------------


async def goodput(folder: Path, faults: int, every: float) -> Row:
    """A rank is killed again and again: the share of time that was productive, by the status."""
    checkpoint = {"claim": {"size": "1Gi"}, "everySeconds": 10}
    job = small_job("goodput", 1_000_000, policy={"maxRestarts": faults}, checkpoint=checkpoint)
    async with local_run(job, folder) as run:
        await until_step(run, 1)
        for fault in range(faults):
            await asyncio.sleep(every)
            os.kill(processes(run, fault % 2)[1][0].pid, signal.SIGKILL)
        await asyncio.sleep(every)
        run.suspend()
        await until_over(run)
        assert run.job.status.phase is Phase.SUSPENDED
        found = run.job.status.goodput
    assert found is not None
    wall = sum(found.parts().values())
    return make_row(
        f"goodput with a fault each {every:.0f} s", found.productive_seconds, "s", f"wall time, {faults} faults", wall
    )


def main() -> None:
    """Run all of it, print the table, and write build/bench/recovery.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.recovery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each way to recover")
    parser.add_argument("--saves", type=int, default=5, help="checkpoints of each size")
    parser.add_argument("--faults", type=int, default=4, help="in the run whose goodput is measured; 0: no such run")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between them")
    parser.add_argument("--out", type=Path, default=Path("build/bench/recovery.json"))
    given = parser.parse_args()
    folder = given.out.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    rows = recovery_rows(folder, given.rounds)
    if given.saves:
        rows += checkpoint_rows(folder, given.saves)
    if given.faults:
        rows.append(asyncio.run(goodput(folder / "goodput", given.faults, given.every)))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(rows, indent=2) + "\n")
    print("\n".join([HEADER, *map(line, rows)]))
