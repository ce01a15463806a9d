"""The benchmark of the operator works: with few pods, each of which is created and deleted once."""

import asyncio

import pytest

from tests.bench.operator import measure
from tests.bench.operator.bench import parse, rows, run
from tests.bench.operator.simulated import simulated_cluster
from tests.cluster import ClusterError
from tests.integration.conftest import install_crd
from tests.support.need import require

# KWOK is compiled before.
pytestmark = pytest.mark.extended


def test_it_measures_a_small_group_and_finds_that_no_request_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SETTLE", 0.2)
    given = parse(["--pods", "50", "--jobs", "5", "--group", "10", "--large", "0", "--rounds", "1"])
    try:
        with simulated_cluster("bench-smoke") as cluster:
            install_crd(cluster)
            result = asyncio.run(run(cluster, given))
    except ClusterError as error:
        require(False, f"a control plane with KWOK: {error}")
        raise
    [job], [many], [crash] = result.job, result.many, result.crash
    assert crash.deletions == given.group, "one deletion for each pod"
    assert job.cost.status_writes <= 20
    assert many.cost.status_writes <= 2.5 * given.jobs
    assert job.running - job.scheduled < 1
    table = rows(result, given)
    assert len({row["case"] for row in table}) == len(table) == 11
