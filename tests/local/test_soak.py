"""A short soak; `make soak` is the long one."""

from pathlib import Path

from tests.soak.soak import soak

SECONDS = 45.0
"""Seconds during which faults are injected; runs that have begun are finished afterwards."""


def test_runs_with_random_faults_have_the_losses_of_an_undisturbed_run(tmp_path: Path) -> None:
    tally = soak(SECONDS, seed=1, folder=tmp_path, say=print)
    print(tally)
    assert tally.faults.total() >= 3
