"""Traces of single steps, by torch's profiler, for chrome://tracing, Perfetto or TensorBoard.

    CHECKPOINTS/profiles/request-RANK.json                    {"steps": 3}: trace the next steps of a rank
    CHECKPOINTS/profiles/ATTEMPT-STEP-rank-RANK.json.gz       a trace that begins with a step

A request is taken up at the next report (logEverySteps). `python -m trainyard_trainer.metrics.profiling` makes one.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from trainyard.protocol import constants
from trainyard.resource.training import Profile
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.runtime import heartbeat, log
from trainyard_trainer.runtime.heartbeat import Phase

FOLDER = "profiles"


def request_file(root: Path, rank: int) -> Path:
    """Where a trace of a rank is asked for."""
    return root / FOLDER / f"request-{rank}.json"


def trace_file(root: Path, attempt: int, step: int, rank: int) -> Path:
    """Where the trace that begins with a step is."""
    return root / FOLDER / f"{attempt}-{step}-rank-{rank}.json.gz"


class Profiler(Observer):
    """Traces steps of one rank: those that the spec names, and those that are asked for."""

    def __init__(self, config: Profile | None, root: Path, rank: int, attempt: int, device: torch.device) -> None:
        self._root = root
        self._rank, self._attempt = rank, attempt
        self._first: int | None = None
        self._steps = 0
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._running: profile | None = None
        if config is not None and rank in config.ranks:
            self._first, self._steps = config.start_step, config.steps

    @property
    def is_tracing(self) -> bool:
        """Whether the step to come, or under way, is traced."""
        return self._running is not None

    def before_step(self, step: int) -> None:
        """A step is about to begin, by its number from 1."""
        if step == self._first:
            self._running = profile(activities=self._activities)
            self._running.start()

    def after_step(self, step: int) -> None:
        """It is done. After the last one of a trace, write it."""
        if self._running is None or self._first is None or step < self._first + self._steps - 1:
            return
        heartbeat.beat(Phase.AFTER_STEP)
        self._running.stop()
        self._write(self._running, trace_file(self._root, self._attempt, self._first, self._rank))
        self._running = self._first = None

    def _write(self, trace: profile, target: Path) -> None:
        """A trace is worth a warning, not the run, should the volume be full."""
        part = target.with_name(f"part-{target.name}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(part))
            part.rename(target)  # so that who waits for it sees a whole one
        except (OSError, RuntimeError) as error:
            log.logger.warning("the trace %s could not be written: %s", target, error)
            return
        log.info(f"trace of {self._steps} steps of rank {self._rank}: {target}")

    def reported(self, report: StepReport) -> None:
        """See whether a trace is asked for, unless one is under way."""
        request = request_file(self._root, self._rank)
        if self._running is not None or not request.exists():
            return
        try:
            steps = int(json.loads(request.read_text())["steps"])
            request.unlink()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.logger.warning("the request %s is no use: %s", request, error)
            request.unlink(missing_ok=True)
            return
        self._first, self._steps = report.step + 1, max(1, steps)


def ask(root: Path, rank: int, steps: int) -> Path:
    """Ask for a trace of the next steps of a rank.

    Raises:
        OSError: the volume cannot be written to.
    """
    request = request_file(root, rank)
    request.parent.mkdir(parents=True, exist_ok=True)
    part = request.with_suffix(".part")
    part.write_text(json.dumps({"steps": steps}))
    part.rename(request)
    return request


def main() -> None:
    """Entry point inside a worker's container."""
    parser = argparse.ArgumentParser(
        prog="python -m trainyard_trainer.metrics.profiling", description="Ask for a trace."
    )
    parser.add_argument("--rank", type=int, default=0, help="rank to trace")
    parser.add_argument("--steps", type=int, default=3, help="steps to trace")
    given = parser.parse_args()
    root = os.environ.get(constants.ENV_CHECKPOINTS)
    if root is None:
        problem = f"{constants.ENV_CHECKPOINTS} is not set: traces go to the checkpoint volume; add spec.checkpoint"
        parser.exit(2, f"{problem}\n")
    ask(Path(root), given.rank, given.steps)


if __name__ == "__main__":
    main()
