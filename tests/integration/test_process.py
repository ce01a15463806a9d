"""The operator as a process: its pages, its end, and what it does when there is no CRD or no API server."""

import asyncio
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.builders import make_manifest
from tests.cluster import Cluster, Profile, status, up
from tests.integration.conftest import install_crd, leave, new_namespace
from tests.support.fake_kubelet import fake_kubelet
from tests.support.kube import Namespace, connect, eventually
from tests.support.operator import PROGRAM, OperatorProcess, operating


async def test_without_the_crd_the_operator_waits_and_says_so_and_then_starts(
    bare_cluster: Cluster, tmp_path: Path
) -> None:
    crd = "customresourcedefinitions.apiextensions.k8s.io/trainingjobs.trainyard.dev"
    bare_cluster.run([bare_cluster.kubectl, "delete", "--ignore-not-found", crd])
    async with operating(bare_cluster.environment, tmp_path / "log", ready=False) as operator:

        async def check() -> None:
            assert operator.logged("is the CRD installed? (helm install trainyard charts/trainyard)")
            assert await operator.page("/readyz") == (503, "the cache is not filled yet\n")
            assert (await operator.page("/healthz"))[0] == 200

        await eventually(check)
        await asyncio.to_thread(install_crd, bare_cluster)
        await operator.ready()


async def test_while_it_waits_for_the_crd_the_operator_ends_on_sigterm(bare_cluster: Cluster, tmp_path: Path) -> None:
    """As process 1 of a container it would otherwise ignore the signal."""
    crd = "customresourcedefinitions.apiextensions.k8s.io/trainingjobs.trainyard.dev"
    bare_cluster.run([bare_cluster.kubectl, "delete", "--ignore-not-found", crd])
    async with operating(bare_cluster.environment, tmp_path / "log", ready=False) as operator:

        async def check() -> None:
            assert operator.logged("is the CRD installed?")

        await eventually(check)
        assert await operator.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_operator_cleanly_and_soon(
    own_cluster: Cluster, own_namespace: Namespace, tmp_path: Path, number: signal.Signals
) -> None:
    async with operating(own_cluster.environment, tmp_path / "log") as operator, fake_kubelet(own_namespace):
        await own_namespace.create_job(make_manifest())
        await own_namespace.has_phase("Running")
        started = time.monotonic()
        operator.process.send_signal(number)
        assert await asyncio.to_thread(operator.process.wait, 10) == 0
        assert time.monotonic() - started < 3, "the next operator waits for the end of this one"
        assert [line["message"] for line in operator.lines if line["level"] in ("error", "critical")] == []


async def test_the_pages_of_a_running_operator(operator: OperatorProcess, namespace: Namespace) -> None:
    await namespace.create_job(make_manifest())
    await namespace.has_pods("job-1-0", "job-1-1")
    assert await operator.page("/healthz") == (200, "ok\n")
    assert await operator.page("/readyz") == (200, "ok\n")
    labels = f'job_name="job",namespace="{namespace.name}"'

    async def check() -> None:
        code, page = await operator.page("/metrics")
        assert code == 200
        assert f'trainyard_job_condition{{condition="Created",{labels}}} 1.0' in page
        assert f'trainyard_job_pods{{{labels},state="Pending"}} 2.0' in page
        assert 'trainyard_operator_api_requests_total{code="201",verb="POST"}' in page
        assert 'trainyard_operator_reconcile_duration_seconds_count{outcome="ok"}' in page

    await eventually(check)
    await namespace.api.delete(namespace.jobs("job"))

    async def gone() -> None:
        assert labels not in (await operator.page("/metrics"))[1]

    await eventually(gone)


async def test_an_api_server_that_dies_and_comes_back_is_found_again(own_cluster: Cluster, tmp_path: Path) -> None:
    async with operating(own_cluster.environment, tmp_path / "log") as operator:
        async with connect(own_cluster.kubeconfig) as api:
            namespace = await new_namespace(api)
            await namespace.create_job(make_manifest())
            await namespace.has_pods("job-1-0", "job-1-1")
        state = status(Profile.CONTROL_PLANE, name=own_cluster.name)["kube-apiserver"]
        found = re.search(r"process (\d+)", state)
        assert found, state
        os.kill(int(found[1]), signal.SIGKILL)

        async def dead() -> None:
            assert "process" not in status(Profile.CONTROL_PLANE, name=own_cluster.name)["kube-apiserver"]

        await eventually(dead)
        await asyncio.to_thread(up, Profile.CONTROL_PLANE, name=own_cluster.name)
        async with connect(own_cluster.kubeconfig) as api:
            namespace = Namespace(api, namespace.name)
            await namespace.create_job(make_manifest("later", replicas=1))
            await namespace.has_pods("job-1-0", "job-1-1", "later-1-0", seconds=60)
            async with fake_kubelet(namespace):
                await namespace.has_phase("Running", seconds=60)
            assert operator.process.poll() is None
            assert (await operator.page("/healthz"))[0] == 200
            await leave(namespace)


def test_without_a_cluster_the_operator_says_what_to_set(tmp_path: Path) -> None:
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [PROGRAM, "--trainer-image", "x", "--port", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot connect to a cluster" in done.stderr
    assert "set KUBECONFIG or run inside a cluster" in done.stderr
    assert "Traceback" not in done.stderr
