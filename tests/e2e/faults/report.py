"""What the faults cost, as a page of Markdown."""

import re
from dataclasses import dataclass

HEAD = """\
# What faults cost

Each row is a fault that `make resilience` makes on a real node while a job trains, and what followed. It rewrites this
page. A test fails if a recovery takes five times as long as it does here.

The job: two workers on one node with {cpus} processors, a transformer of half a million parameters, {steps} steps of at
least {pace:g} s, a checkpoint after every {every}, no backoff. Where the pods stay and only their processes start again
([failures.md](failures.md#restarts-in-place)) recovery takes about two seconds; else most of the time is the start of
new pods and the import of torch. A hang is detected after `health.hangTimeoutSeconds`, 5 s here.

- **Seconds**: the longest time after the fault without a step that had never been made before. They differ from machine
  to machine and from run to run; the tests demand all else.
- **Steps lost**: from the last step before the restart back to the checkpoint that was resumed from. Pods that are told
  to stop (deletion, eviction, drain) save first.
- **Repeated, skipped**: samples, of all that the final model has been trained on, by the numbers that each rank drew.
- **Loss**: relative difference of the last loss from that of a run without a fault. The loss of every step is compared.
- **Reason**: `status.lastFailure.reason`, and whether it counts against `restartPolicy.maxRestarts`. If the API server
  was away, the operator may see, and name, a worker that merely lost its peer before the one that failed.

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
