"""A short soak; `make soak` is the long one.

It is extended: tests/local/test_recovery.py and tests/e2e/faults kill ranks and workers one at a time, and compare
losses and samples in the same way.
"""

from pathlib import Path

import pytest

from tests.soak.soak import soak

SECONDS = 45.0
"""Seconds during which faults are injected; runs that have begun are finished afterwards."""


@pytest.mark.extended
def test_runs_with_random_faults_have_the_losses_of_an_undisturbed_run(tmp_path: Path) -> None:
    tally = soak(SECONDS, seed=1, folder=tmp_path, say=print)
    print(tally)
    assert tally.faults.total() >= 3
