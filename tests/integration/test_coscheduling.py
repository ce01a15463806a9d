"""Gangs with the real scheduler of scheduler-plugins, as a second scheduler beside that of Kubernetes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import make_manifest
from tests.cluster import Cluster
from tests.cluster.add_ons import COSCHEDULING
from tests.cluster.process import spawn, stop, tail
from tests.integration.conftest import chart_operator, install_crd
from tests.support.fake_nodes import all_bound, bound_pods_run, nodes
from tests.support.kube import Namespace
from tests.support.two_jobs import ONE_CPU, first_attempts, pairs_succeed, partial_groups

pytestmark = [pytest.mark.extended, pytest.mark.usefixtures("coscheduling")]
"""The scheduler is compiled for some minutes the first time. In each change test_scheduling.py has the native one."""

GANG: dict[str, Any] = {"scheduling": {"gang": "coscheduling"}}


@pytest.fixture(scope="module")
def coscheduling(own_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The other cluster with the scheduler, its CRD, and the operator of the chart."""
    folder = tmp_path_factory.mktemp("coscheduling")
    crds = COSCHEDULING.sources() / "config" / "crd" / "bases"
    install_crd(own_cluster, crds / "scheduling.x-k8s.io_podgroups.yaml")
    configuration, log = folder / "configuration.yaml", folder / "scheduler"
    configuration.write_text(yaml.safe_dump(_configuration(own_cluster.kubeconfig)), "utf-8")
    process = spawn([str(COSCHEDULING.program()), f"--config={configuration}", "--secure-port=0"], log, folder)
    try:
        with chart_operator(own_cluster, folder):
            yield
        assert process.alive(), f"the scheduler has ended: {tail(log)}"
    finally:
        stop([process], grace=1)


def _configuration(kubeconfig: Path) -> dict[str, object]:
    """Return the configuration of its chart, with the plugin Coscheduling alone."""
    plugins = {"multiPoint": {"enabled": [{"name": "Coscheduling"}], "disabled": [{"name": "PrioritySort"}]}}
    arguments = {"name": "Coscheduling", "args": {"permitWaitingTimeSeconds": 10}}
    profile = {"schedulerName": "scheduler-plugins-scheduler", "plugins": plugins, "pluginConfig": [arguments]}
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "profiles": [profile],
    }


async def test_two_jobs_that_each_need_the_whole_node_do_not_block_each_other(own_namespace: Namespace) -> None:
    pods = await pairs_succeed(own_namespace, 20, spread=0.2, **GANG)
    assert partial_groups(pods) == [], "a part of a group got nodes"
    assert set(pods.bound) == first_attempts(20)


async def test_a_group_that_does_not_fit_holds_nothing(own_namespace: Namespace) -> None:
    workers = {"resources": ONE_CPU}
    async with nodes(own_namespace.api, (own_namespace.name, 3, {})), bound_pods_run(own_namespace, 2):
        await own_namespace.create_job(make_manifest(replicas=4, workers=workers, **GANG))
        await own_namespace.has_condition("Running", "False", "Unschedulable")
        await own_namespace.create_job(make_manifest("other", replicas=2, workers=workers, **GANG))
        await own_namespace.has_phase("Succeeded", "other", seconds=60)
        bound = {name for name, pod in (await own_namespace.pods()).items() if pod["spec"].get("nodeName")}
        assert bound == {"other-1-0", "other-1-1"}


async def test_the_next_attempt_is_a_new_group(own_namespace: Namespace) -> None:
    workers, policy = {"resources": ONE_CPU}, {"backoff": {"initialSeconds": 0}}
    async with (
        nodes(own_namespace.api, (own_namespace.name, 2, {})),
        bound_pods_run(own_namespace, 2, ends=False) as pods,
    ):
        await own_namespace.create_job(make_manifest(workers=workers, restartPolicy=policy, **GANG))
        await own_namespace.has_phase("Running")
        await pods.end("job-1", code=1)
        await all_bound(own_namespace, "job-2-0", "job-2-1")
        await own_namespace.has_phase("Running")
        groups = f"/apis/scheduling.x-k8s.io/v1alpha1/namespaces/{own_namespace.name}/podgroups"
        items = (await own_namespace.api.get(groups))["items"]
        assert [item["metadata"]["name"] for item in items] == ["job-2"]
