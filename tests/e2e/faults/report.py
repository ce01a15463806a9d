"""What the faults cost, as a page of Markdown."""

from dataclasses import dataclass

HEAD = """\
# What faults cost

Each row is a fault that `make e2e` makes on a real node while a job trains, and what followed. `make resilience`
measures anew and rewrites this page.

The job: two workers on one node with {cpus} processors, a transformer of half a million parameters, {steps} steps of at least
{pace:g} s, a checkpoint after every {every}, no backoff. Where the pods stay and only their processes start again
([failures.md](failures.md#restarts-in-place)) that takes about two seconds; else most of the time is the start of new
pods and the import of torch. The time until a hang is found is `health.hangTimeoutSeconds`, 5 s here.

- **Seconds**: the longest time, from the fault on, without a step that had never been made before. They differ from
  machine to machine and from run to run; all else is what the tests demand.
- **Steps lost**: from the last step before the restart back to the checkpoint that was taken up. Pods that are told to
  stop (deletion, eviction, drain) save first.
- **Repeated, skipped**: samples, of all that the final model has been trained on, by the numbers that each rank drew.
- **Loss**: relative difference of the last loss from that of a run without a fault. Every step's is compared.
- **Reason**: `status.lastFailure.reason`, and whether it spent `restartPolicy.maxRestarts`. If the API server was away, a
  worker that merely lost its peer may be seen, and named, before the one that failed.

| Fault | Recovered | Seconds | Steps lost | Repeated, skipped | Loss | Reason | Counted |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What a fault has cost."""

    what: str
    seconds: float
    lost: int
    repeated: int
    skipped: int
    loss_difference: float
    reason: str | None
    counted: bool

    def __str__(self) -> str:
        """The row of the table; only what has recovered gets one."""
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
    """The page."""
    return HEAD.format(cpus=cpus, steps=steps, pace=pace, every=every) + "".join(f"{row}\n" for row in rows)
