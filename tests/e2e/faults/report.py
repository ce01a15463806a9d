"""What the faults cost, as a page of Markdown."""

import re
from dataclasses import dataclass

HEAD = """\
# Measured cost of faults

Each row is a fault that `make e2e` causes on a real node while a job trains, and its effect. `make resilience` measures
again and rewrites this page.

The job: two workers on one node with {cpus} processors, a model of half a million parameters, {steps} steps of at least
{pace:g} s, a checkpoint every {every} steps, no backoff. A restart inside the pods
([failures.md](failures.md#restarts-in-place)) takes about two seconds; otherwise most of the time is the start of new
pods and the import of torch. A hang is detected after `health.hangTimeoutSeconds`, 5 s here.

- **Seconds**: the longest time after the fault without a new step. This varies between machines and runs; the tests
  require all other columns.
- **Steps lost**: from the last step before the restart back to the checkpoint from which it resumed. Pods that are
  terminated (deletion, eviction, drain) save first.
- **Repeated, skipped**: samples, among all that the final model was trained on, by the numbers that each rank recorded.
- **Loss**: relative difference of the last loss from that of a run without a fault. Every step is compared.
- **Reason**: `status.lastFailure.reason`, and whether the restart counted towards `restartPolicy.maxRestarts`. If the
  API server was unavailable, a worker that lost its peer may be observed, and reported, before the one that failed.

| Fault | Recovered | Seconds | Steps lost | Repeated, skipped | Loss | Reason | Counted |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """The cost of one fault."""

    what: str
    seconds: float
    lost: int
    repeated: int
    skipped: int
    loss_difference: float
    reason: str | None
    counted: bool

    def __str__(self) -> str:
        """Return the row of the Markdown table; only faults that were recovered from have one."""
        difference = f"{self.loss_difference:.0e}" if self.loss_difference else "0"
        reason = f"`{self.reason}`" if self.reason else ""
        counted = ("yes" if self.counted else "no") if self.reason else ""
        cells = (
            self.what,
            "yes",
            f"{self.seconds:.1f}",
            str(self.lost),
            f"{self.repeated}, {self.skipped}",
            difference,
            reason,
            counted,
        )
        return f"| {' | '.join(cells)} |"


def render(rows: list[Row], *, cpus: int, steps: int, pace: float, every: int) -> str:
    """Return the page as Markdown."""
    return HEAD.format(cpus=cpus, steps=steps, pace=pace, every=every) + "".join(f"{row}\n" for row in rows)


def recorded_seconds(page: str) -> dict[str, float]:
    """Return the seconds of each fault in the table of such a page, by what the fault is."""
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in page.splitlines() if line.startswith("| ")]
    return {cell[0]: float(cell[2]) for cell in cells if re.fullmatch(r"[\d.]+", cell[2])}
