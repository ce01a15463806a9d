"""All thresholds of the rules: times, which tests scale down together, and ratios."""

from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True)
class Timing:
    """Windows, waits and limits, in seconds.

    Fields that end in `_for` are `for` in Prometheus: how long an expression must hold before its alert fires.
    """

    gap: float = 120
    """How long a series may be missing (a failed scrape, a restarting operator) while its last value still counts."""
    smooth: float = 600
    """Window of the mean of loss and throughput."""
    history: float = 21_600
    """Window of a run's own history, which it is compared with."""

    stalled_after: float = 900
    """Time without a step, which must also exceed `STALLED_STEPS` usual steps. Longer than any expected evaluation,
    during which no step is done."""
    stalled_memory: float = 3_600
    """How long the last step of a worker counts that no longer answers scrapes."""
    stalled_for: float = 120
    """The operator's page may show the first step of an attempt before the worker's page is scraped."""
    nonfinite_window: float = 1_800
    diverging_for: float = 900
    straggler_for: float = 300
    restarts_window: float = 3_600
    slow_lag: float = 1_800
    """The most recent time that the throughput baseline excludes, so that a drop does not lower it immediately."""
    slow_for: float = 900
    pending_after: float = 1_200
    """Longer than booting a node and pulling an image take."""
    pending_for: float = 300
    checkpoint_history: float = 86_400
    """Window from which a job's usual interval between checkpoints is computed."""
    checkpoint_floor: float = 900
    """Unsaved training that is always accepted, even if the usual interval is shorter."""
    checkpoint_fallback: float = 14_400
    """Unsaved training that is accepted while no usual interval is known."""
    checkpoint_for: float = 300
    save_failures_window: float = 1_800
    failed_kept: float = 86_400
    """How long the alert on a failed job fires, unless the job is deleted earlier."""

    operator_down_for: float = 300
    operator_memory: float = 3_600
    """How long an operator that is gone is reported with its namespace; later only the absence of all operators is."""
    no_leader_for: float = 120
    """Longer than a failover (a lease lasts 15 s) and a few failed scrapes of the leader."""
    queue_stalled: float = 90
    """Longer than the longest request with its timeout, shorter than the 120 s after which the kubelet restarts it."""
    part_failures_window: float = 900
    """How long the failure of a part of the operator is reported."""
    queue_window: float = 600
    """How long a stuck queue is reported, because a restart ends it, perhaps only until the next time."""

    def scaled(self, factor: float) -> "Timing":
        """Return all times multiplied by a factor; tests let a day pass in minutes."""
        return Timing(**{field.name: getattr(self, field.name) * factor for field in fields(self)})


TIMING: Final = Timing()
"""Times of the rules in the chart."""

STALLED_STEPS: Final = 20
"""Number of usual step times that one step may take."""
NONFINITE_STEPS: Final = 3
"""Steps within `nonfinite_window`; a single one occurs in healthy runs."""
DIVERGING_RATIO: Final = 1.3
DIVERGING_MARGIN: Final = 0.2
"""Nats. The loss is too high above `DIVERGING_RATIO` times its lowest mean plus this: near zero, ratios say little."""
RESTARTS: Final = 3
"""Restarts within `restarts_window`."""
SLOW_RATIO: Final = 0.7
"""Share of the usual throughput."""
STALE_INTERVALS: Final = 3
"""Number of usual intervals without a checkpoint."""

RUNBOOKS: Final = "docs/runbooks"
"""Path of the runbooks in the repository; the chart's value monitoring.runbookUrl replaces it by a URL."""


def duration(seconds: float) -> str:
    """Return a time in PromQL, to the millisecond: 90 is "90s", 3600 is "1h"."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length:.0f}{unit}"
    return f"{round(seconds * 1000)}ms"


def number(value: float) -> str:
    """Return a number in its shortest form: 900, 0.7."""
    return f"{round(value, 3):g}" if value < 1e6 else f"{value:.0f}"
