"""What a run did, from the logs of its pods: which attempt made which step, when, with which loss and samples."""

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
    """One step that one attempt has made."""

    attempt: int
    number: int
    loss: float
    at: float
    """When rank 0 said so (Unix time, seconds)."""


@dataclass
class Course:
    """All that the pods of a job have said."""

    steps: list[Step] = field(default_factory=list)
    resumed: dict[int, int] = field(default_factory=dict)
    """By attempt: the step that it has continued after."""
    drawn: dict[tuple[int, int], dict[int, list[int]]] = field(default_factory=dict)
    """By attempt and step: the samples of each rank."""
    warnings: list[str] = field(default_factory=list)
    """What ranks have said that should not happen."""

    def hear(self, line: str, at: float) -> None:
        """Take in a line of a log."""
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
        """The highest step so far."""
        return max((step.number for step in self.steps), default=0)

    @property
    def attempts(self) -> list[int]:
        """Those that made steps."""
        return sorted({step.attempt for step in self.steps})

    def reached(self, attempt: int) -> int:
        """The highest step of an attempt."""
        return max(step.number for step in self.steps if step.attempt == attempt)

    def longest_pause(self, since: float, reached: int) -> float:
        """Most seconds without a step that had never been made before, from a moment at which so many were made."""
        news: list[float] = []
        for step in sorted(self.steps, key=lambda step: step.at):
            if step.at > since and step.number > reached:
                reached = step.number
                news.append(step.at)
        return max(later - earlier for earlier, later in pairwise([since, *news]))

    def lasting(self) -> dict[int, int]:
        """By step: the attempt whose work it is that lasted, since later ones have gone on from it."""
        owners: dict[int, int] = {}
        for attempt in self.attempts:
            start = self.resumed.get(attempt, 0)
            owners = {number: owner for number, owner in owners.items() if number <= start}
            owners |= {step.number: attempt for step in self.steps if step.attempt == attempt}
        return owners

    def losses(self) -> dict[int, float]:
        """By step: the loss of the run as it went on in the end."""
        owners = self.lasting()
        return {s.number: s.loss for s in self.steps if owners[s.number] == s.attempt}

    def samples(self) -> list[int]:
        """The samples that the model in the end has been trained on, in the order of steps and ranks."""
        found: list[int] = []
        for number, attempt in sorted(self.lasting().items()):
            ranks = self.drawn[attempt, number]
            found += [sample for _, numbers in sorted(ranks.items()) for sample in numbers]
        return found


def repeated(samples: list[int]) -> int:
    """How many of the samples are there once more."""
    return sum(count - 1 for count in Counter(samples).values())


def skipped(samples: list[int], expected: list[int]) -> int:
    """How many of those expected are missing."""
    return len(set(expected) - set(samples))


@contextmanager
def follow(pod_logs: Path, namespace: str, job: str) -> Iterator[Course]:
    """Listen to all pods of a job while the context lasts, even while the API server is away."""
    course, stop = Course(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        listening = executor.submit(_listen, course, pod_logs, f"{namespace}_{job}-[0-9]*-[0-9]*_*/worker/*.log", stop)
        try:
            yield course
        finally:
            stop.set()
        listening.result()


def _listen(course: Course, pod_logs: Path, pattern: str, stop: threading.Event) -> None:
    with ExitStack() as opened:
        logs: dict[Path, Log] = {}
        last = False
        while not last:
            last = stop.wait(0.05)
            for path in pod_logs.glob(pattern):
                if path not in logs:  # open from now on, so that it can be read though its pod is deleted
                    logs[path] = Log(opened.enter_context(path.open(encoding="utf-8")))
            for log in logs.values():
                for line, at in log.news():
                    course.hear(line, at)


@dataclass
class Log:
    """The log of one container, as the kubelet's runtime writes it: TIME STREAM F|P TEXT (P: a part of a line)."""

    file: IO[str]
    rest: str = ""

    def news(self) -> Iterator[tuple[str, float]]:
        """Lines that have come since the last time, and when."""
        *lines, self.rest = (self.rest + self.file.read()).split("\n")
        for line in lines:
            time, _, tag, text = line.split(" ", 3)
            assert tag == "F", "lines of these pods are short"
            yield text, datetime.fromisoformat(time).timestamp()
