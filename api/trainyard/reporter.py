"""Progress reports of your own training program: status, dashboards and alerts work as for the built-in trainer.

    from trainyard.reporter import Reporter

    reporter = Reporter(total_steps=1000)
    for step in range(1000):
        ...
        reporter.step(tokens=batch * length, loss=loss)

with `spec.metrics: {}` in the TrainingJob. It needs prometheus-client (the extra "report", see
docs/install.md) and no torch.
"""

import atexit
import fcntl
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from prometheus_client import ProcessCollector, start_http_server

from trainyard.net import any_address
from trainyard.protocol import constants, launcher_protocol, worker_metrics
from trainyard.protocol.launcher import termination_message_path
from trainyard.protocol.log_tail import is_peer_loss
from trainyard.protocol.metrics_page import MetricsPage

MAX_METRICS = 32
"""Figures of an evaluation that the status holds; further ones are on the metrics page only."""
MAX_TEXT = 1000
"""Longest text of an exception in the termination message, in characters."""
WINDOW = 30.0
"""Seconds over which the throughput is averaged."""


class Reporter:
    """Serves the metrics of one worker.

    Create one in each process, and call it from each. Rank 0 reports the metrics of the whole job, the first process of
    each pod serves its page, and all other processes do nothing. Values are for the whole job, over all ranks.

    The operator reads the page every few seconds. So that the last steps reach the status as well, rank 0 leaves its
    final figures as the termination message of its pod when it ends. A process that an uncaught exception ends leaves
    that instead, with its rank.
    """

    def __init__(
        self, total_steps: int | None = None, *, resumed_step: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start to serve the metrics page.

        Args:
            total_steps: optimizer steps planned in total; without it the status shows no ETA.
            resumed_step: step of the checkpoint this attempt resumes from; 0 without one.
            clock: returns seconds; for tests.

        Raises:
            OSError: the port (spec.metrics.port) is in use.
        """
        env = os.environ.get
        self._clock = clock
        self._page = MetricsPage(env(constants.ENV_NAMESPACE, "default"), env(constants.ENV_JOB, "job"))
        self.registry = self._page.registry
        rank = env("RANK", "0")
        self._rank = int(rank) if rank.isdecimal() else 0
        self._is_rank_0 = self._rank == 0
        self._serves = env("LOCAL_RANK", "0") == "0"
        self._recent: deque[tuple[float, int, int]] = deque([(clock(), 0, 0)])
        """Time, tokens and samples of this attempt after each recent step."""
        self._tokens_done = self._samples_done = 0
        self._steps_before = resumed_step
        """Steps of earlier attempts whose tokens and samples are not counted yet."""
        self._evaluation: dict[str, float] = {}
        """Figures of the last evaluation."""
        self._process = os.getpid()
        atexit.register(self._leave_message)
        if self._is_rank_0:
            self._declare(total_steps, resumed_step)
        if self._serves:
            ProcessCollector(registry=self.registry)
            port = launcher_protocol.port_number(constants.ENV_METRICS_PORT, constants.METRICS_PORT)
            self._server, self._thread = start_http_server(port, any_address(), self.registry)

    def _declare(self, total_steps: int | None, resumed_step: int) -> None:
        self._page.set(worker_metrics.ATTEMPT, launcher_protocol.attempt_number())
        self._page.add(worker_metrics.STEP, resumed_step)
        self._page.add(worker_metrics.TOKENS, 0)
        self._page.add(worker_metrics.SAMPLES, 0)
        if total_steps is not None:
            self._page.set(worker_metrics.TOTAL_STEPS, total_steps)
        if resumed_step:
            self._page.set(worker_metrics.RESUMED_STEP, resumed_step)

    def step(
        self,
        *,
        tokens: int = 0,
        samples: int = 0,
        loss: float | None = None,
        learning_rate: float | None = None,
        grad_norm: float | None = None,
        **values: float,
    ) -> None:
        """Report that an optimizer step is done.

        Args:
            tokens: tokens of the step, over all ranks.
            samples: samples of the step, over all ranks.
            loss: training loss of the step; None: not known.
            learning_rate: learning rate of the step; None: not known.
            grad_norm: norm of the gradient before clipping; None: not known.
            values: other measurements of a step that the table of worker metrics has, for example mfu=0.4.

        Raises:
            TypeError: the table does not have one of the values.
        """
        if self._serves:
            self._page.set(worker_metrics.LAST_STEP_TIME, time.time())
        if not self._is_rank_0:
            return
        # Of earlier attempts only the number of steps is known: count each with the size of the first step here.
        counted_steps = 1 + self._steps_before
        self._steps_before = 0
        self._page.add(worker_metrics.STEP)
        self._page.add(worker_metrics.TOKENS, tokens * counted_steps)
        self._page.add(worker_metrics.SAMPLES, samples * counted_steps)
        self._tokens_done += tokens
        self._samples_done += samples
        self._set_throughput()
        measured = {field: metric for field, metric in worker_metrics.gauges_by_field().items() if metric.tracker_name}
        for name, value in {"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm, **values}.items():
            if name not in measured:
                raise TypeError(
                    f"Reporter.step: {name} is not a measurement of a step; use one of {', '.join(measured)}"
                )
            if value is not None:
                self._page.set(measured[name], value)

    def _set_throughput(self) -> None:
        """Show the throughput over the last `WINDOW` seconds, or since the start of this attempt."""
        now = self._clock()
        self._recent.append((now, self._tokens_done, self._samples_done))
        while len(self._recent) > 2 and now - self._recent[1][0] >= WINDOW:
            self._recent.popleft()
        start, tokens, samples = self._recent[0]
        if now <= start:
            return
        for metric, amount in (
            (worker_metrics.TOKENS_PER_SECOND, self._tokens_done - tokens),
            (worker_metrics.SAMPLES_PER_SECOND, self._samples_done - samples),
        ):
            if amount:
                self._page.set(metric, amount / (now - start))

    def evaluated(self, **values: float) -> None:
        """Report an evaluation on held-out samples: loss, accuracy, perplexity, ..."""
        if self._is_rank_0:
            self._evaluation = {name: float(value) for name, value in values.items()}
            for name, value in values.items():
                self._page.set(worker_metrics.EVALUATION.named(name), value)

    def saved(self, step: int) -> None:
        """Report that the checkpoint of a step is complete."""
        if self._is_rank_0:
            self._page.set(worker_metrics.CHECKPOINT_STEP, step)
            self._page.set(worker_metrics.CHECKPOINT_TIME, time.time())

    def close(self) -> None:
        """Leave the final figures, and stop serving the metrics page. A program that ends does not need to call it."""
        self._leave_message()
        if self._serves:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _leave_message(self) -> None:
        """Leave the final figures, or the exception that ends the process, as the termination message of the pod.

        The operator reads it when the pod has ended. Without one it only has the end of the log, where the summary of a
        launcher like torchrun may have replaced the exception.
        """
        # Not in a pod of a job, or in a child process that has inherited this object.
        if constants.ENV_JOB not in os.environ or self._process != os.getpid():
            return
        error = getattr(sys, "last_value", None)
        if error is not None:
            text = str(error).strip().partition("\n")[0][:MAX_TEXT].encode("utf-8", "replace").decode()
            name = type(error).__name__
            lost = is_peer_loss(f"{name}: {text}")
            message: dict[str, Any] = {"rank": self._rank, "exception": name, "message": text, "peerLost": lost}
        elif self._is_rank_0:
            figures = self._figures()
            message = {"rank": 0, "step": figures["step"], "progress": figures}
        else:
            return
        try:
            write_message(message)
        except OSError as problem:
            where = termination_message_path()
            print(f"the termination message cannot be written to {where}: {problem.strerror}", file=sys.stderr)

    def _figures(self) -> dict[str, Any]:
        """Return the figures in the form of status.progress."""
        values = {name: value for name, value in self._page.progress().items() if math.isfinite(value)}
        metrics = {metric.field: metric for metric in worker_metrics.METRICS if metric.field is not None}
        figures: dict[str, Any] = {
            _camel_case(name): int(value) if metrics[name].integer else metrics[name].rounded(value)
            for name, value in values.items()
        }
        finite = [(name, value) for name, value in self._evaluation.items() if math.isfinite(value)]
        evaluation = dict(finite[:MAX_METRICS])
        if evaluation:
            figures["metrics"] = evaluation
        if "loss" in evaluation:
            figures["evalLoss"] = evaluation["loss"]
        return figures


def write_message(message: dict[str, Any]) -> None:
    """Write the termination message of the pod, unless another process of it has left one that matters more.

    The first exception stays. It replaces figures, and an exception that only reports a lost peer.

    Raises:
        OSError: the file cannot be written.
    """
    # In place, not by rename: in a pod the file is a mount point. Other processes may write at the same time.
    with termination_message_path().open("a+", encoding="utf-8", errors="replace") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            existing = json.loads(file.read())
        except (ValueError, RecursionError):
            existing = None
        if isinstance(existing, dict) and existing.get("exception"):
            replaces = existing.get("peerLost") and message.get("exception") and not message.get("peerLost")
            if not replaces:
                return
        file.truncate(0)
        file.write(json.dumps(message))


def _camel_case(name: str) -> str:
    """Return the name of a field in the API."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
