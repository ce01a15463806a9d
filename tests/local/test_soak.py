"""A short soak; `make soak` is the long one."""

from pathlib import Path

from tests.soak.soak import soak

SECONDS = 45.0
"""For faults; the runs that have begun are then brought to their end."""


def test_runs_that_are_hurt_at_random_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    tally = soak(SECONDS, seed=1, folder=tmp_path, say=print)
    print(tally)
    assert tally.faults.total() >= 3
