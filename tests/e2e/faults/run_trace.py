"""The trace of a run, from the logs of its pods: the steps of each attempt, with time, loss and samples."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one attempt."""

    attempt: int
    number: int
    loss: float
    at: float
    """When rank 0 logged it (Unix time, seconds)."""


@dataclass
class RunTrace:
    """The log lines of a job's pods, in parsed form."""

    steps: list[Step] = field(default_factory=list)
    resumed: dict[int, int] = field(default_factory=dict)
    """By attempt: the step of the checkpoint that it resumed from."""
    drawn: dict[tuple[int, int], dict[int, list[int]]] = field(default_factory=dict)
    """By attempt and step: the samples of each rank."""
    warnings: list[str] = field(default_factory=list)
    """Messages of level warning or error."""

    def hear(self, line: str, at: float) -> None:
        """Parse a line of a log."""
        if not line.startswith("{"):
            return
        said: dict[str, Any] = json.loads(line)
        if "drawn" in said:
            self.drawn.setdefault((said["attempt"], said["step"]), {})[said["rank"]] = said["drawn"]
        elif "resumedStep" in said and "loss" not in said:
            self.resumed[said["attempt"]] = said["resumedStep"]
        elif said.get("level") in ("warning", "error"):
            self.warnings.append(said["message"])
        elif "loss" in said:
            self.steps.append(Step(said["attempt"], said["step"], said["loss"], at))

    @property
    def step(self) -> int:
        """Highest step so far."""
        return max((step.number for step in self.steps), default=0)

    @property
    def attempts(self) -> list[int]:
        """Attempts that made steps."""
        return sorted({step.attempt for step in self.steps})

    def reached(self, attempt: int) -> int:
        """Return the highest step of an attempt."""
        return max(step.number for step in self.steps if step.attempt == attempt)

    def longest_pause(self, since: float, reached: int) -> float:
        """Return the longest time without new steps, in seconds, from a moment at which `reached` steps were done."""
        news: list[float] = []
        for step in sorted(self.steps, key=lambda step: step.at):
            if step.at > since and step.number > reached:
                reached = step.number
                news.append(step.at)
        return max(later - earlier for earlier, later in pairwise([since, *news]))

    def lasting(self) -> dict[int, int]:
        """Return by step the attempt whose result lasted, because later attempts resumed from it."""
        owners: dict[int, int] = {}
        for attempt in self.attempts:
            start = self.resumed.get(attempt, 0)
            owners = {number: owner for number, owner in owners.items() if number <= start}
            owners |= {step.number: attempt for step in self.steps if step.attempt == attempt}
        return owners

    def losses(self) -> dict[int, float]:
        """Return by step the loss of the steps that lasted."""
        owners = self.lasting()
        return {s.number: s.loss for s in self.steps if owners[s.number] == s.attempt}

    def samples(self) -> list[int]:
        """Return the samples that the final model has been trained on, in the order of steps and ranks."""
        found: list[int] = []
        for number, attempt in sorted(self.lasting().items()):
            ranks = self.drawn[attempt, number]
            found += [sample for _, numbers in sorted(ranks.items()) for sample in numbers]
        return found


def repeated(samples: list[int]) -> int:
    """Return how many of the samples are repetitions."""
    return sum(count - 1 for count in Counter(samples).values())


def skipped(samples: list[int], expected: list[int]) -> int:
    """Return how many of the expected samples are missing."""
    return len(set(expected) - set(samples))


@contextmanager
def follow(pod_logs: Path, namespace: str, job: str) -> Iterator[RunTrace]:
    """Follow the logs of all pods of a job while the context lasts, even while the API server is away."""
    trace, stop = RunTrace(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        listening = executor.submit(_listen, trace, pod_logs, f"{namespace}_{job}-[0-9]*-[0-9]*_*/worker/*.log", stop)
        try:
            yield trace
        finally:
            stop.set()
        listening.result()


def _listen(trace: RunTrace, pod_logs: Path, pattern: str, stop: threading.Event) -> None:
    with ExitStack() as opened:
        logs: dict[Path, Log] = {}
        last = False
        while not last:
            last = stop.wait(0.05)
            for path in pod_logs.glob(pattern):
                if path not in logs:  # stays open, so that it can be read after its pod is deleted
                    logs[path] = Log(opened.enter_context(path.open(encoding="utf-8")))
            for log in logs.values():
                for line, at in log.news():
                    trace.hear(line, at)


@dataclass
class Log:
    """The log of one container, as the kubelet's runtime writes it: TIME STREAM F|P TEXT (P: a part of a line)."""

    file: IO[str]
    rest: str = ""

    def news(self) -> Iterator[tuple[str, float]]:
        """Yield the lines since the last call, and when each was written."""
        *lines, self.rest = (self.rest + self.file.read()).split("\n")
        for line in lines:
            time, _, tag, text = line.split(" ", 3)
            assert tag == "F", "lines of these pods are short"
            yield text, datetime.fromisoformat(time).timestamp()
