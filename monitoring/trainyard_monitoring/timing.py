"""Every threshold of the rules: the times, which a test can scale down together, and the ratios, which it cannot."""

from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True)
class Timing:
    """Windows, waits and limits that are times, in seconds.

    `for` in Prometheus is how long an expression must hold without a gap before its alert fires.
    """

    gap: float = 120
    """How long a series may be missing (a failed scrape, an operator that restarts) and still count as it was."""
    smooth: float = 600
    """Loss and throughput are judged by their mean over this."""
    history: float = 21_600
    """What a run is compared with: itself, over this time."""

    stalled_after: float = 900
    """Without a step; and no less than `STALLED_STEPS` usual steps. Above the longest evaluation to be expected, which
    makes no step either."""
    stalled_memory: float = 3_600
    """A worker that is stopped does not answer scrapes: how long its last step is remembered."""
    stalled_for: float = 120
    """For the operator's page may tell of the first step of an attempt before the worker's own is scraped."""
    nonfinite_window: float = 1_800
    diverging_for: float = 900
    straggler_for: float = 300
    restarts_window: float = 3_600
    slow_lag: float = 1_800
    """The baseline of the throughput leaves out the newest time, so that a drop does not lower it at once."""
    slow_for: float = 900
    pending_after: float = 1_200
    """Longer than a node that must boot and an image that must be pulled take."""
    pending_for: float = 300
    checkpoint_history: float = 86_400
    """What a job's usual interval between checkpoints is taken from."""
    checkpoint_floor: float = 900
    """Training that may always be at risk, however short the usual interval is."""
    checkpoint_fallback: float = 14_400
    """Training at risk where no usual interval is known yet."""
    checkpoint_for: float = 300
    save_failures_window: float = 1_800
    failed_kept: float = 86_400
    """A job that has failed and is not deleted stops firing after this."""

    operator_down_for: float = 300
    operator_memory: float = 3_600
    """An operator that was seen in this time is missed by name; after that only the lack of any is told."""
    no_leader_for: float = 120
    """Above a failover (a lease lasts 15 s), and above some scrapes of the leader that fail."""
    queue_stalled: float = 90
    """Above the longest request with its time-out, and below the 120 s at which the kubelet restarts the operator."""
    queue_window: float = 600
    """For how long a standstill is told of: the restart ends it, perhaps until the next one."""

    def scaled(self, factor: float) -> "Timing":
        """All times multiplied: a test lets a day pass in minutes."""
        return Timing(**{field.name: getattr(self, field.name) * factor for field in fields(self)})


TIMING: Final = Timing()
"""What the chart ships."""

STALLED_STEPS: Final = 20
"""Usual steps that one step may take."""
NONFINITE_STEPS: Final = 3
"""Within `nonfinite_window`. A single one happens to healthy runs."""
DIVERGING_RATIO: Final = 1.3
DIVERGING_MARGIN: Final = 0.2
"""The loss is too high above `DIVERGING_RATIO` times its lowest mean, plus this (nats): near zero a ratio is noise."""
RESTARTS: Final = 3
"""Within `restarts_window`."""
SLOW_RATIO: Final = 0.7
"""Of the usual throughput."""
STALE_INTERVALS: Final = 3
"""Usual intervals without a checkpoint."""

RUNBOOKS: Final = "docs/runbooks"
"""Path of the runbooks in the repository; the chart's value monitoring.runbookUrl replaces it by a URL."""


def span(seconds: float) -> str:
    """A time as PromQL writes it, to the millisecond: 90 is "90s", 3600 is "1h"."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length:.0f}{unit}"
    return f"{round(seconds * 1000)}ms"


def number(value: float) -> str:
    """A number as short as it can be: 900, 0.7."""
    return f"{round(value, 3):g}" if value < 1e6 else f"{value:.0f}"
