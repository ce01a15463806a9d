"""Errors of `trainyard` on a cluster: each is one line with a fix, and an exit code."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import make_manifest, termination_message, trainer_spec
from tests.cluster import Cluster
from tests.support.command import PROGRAM, Command, Terminal, manifest
from tests.support.fake_kubelet import end_all, finish_deletion, run_all
from tests.support.kube import Namespace, eventually
from trainyard.protocol import constants
from trainyard.protocol.progress import Progress

pytestmark = pytest.mark.usefixtures("operator")


async def test_a_cluster_that_cannot_be_reached_is_an_error_with_a_fix(trainyard: Command, tmp_path: Path) -> None:
    unknown = await trainyard("list", "--context", "nowhere")
    assert (unknown.code, "there is no context nowhere; choose one of: " in unknown.error) == (2, True)
    config = yaml.safe_load(trainyard.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    config["users"] = [{"name": user["name"], "user": {"token": "none"}} for user in config["users"]]
    broken = tmp_path / "broken"
    broken.write_text(yaml.safe_dump(config))
    done = await trainyard("list", "--kubeconfig", str(broken))
    assert done.code == 3
    assert done.error.startswith("https://127.0.0.1:1 does not respond: ")
    config["clusters"] = yaml.safe_load(trainyard.kubeconfig.read_text())["clusters"]
    broken.write_text(yaml.safe_dump(config))
    refused = await trainyard("list", "--kubeconfig", str(broken))
    assert (refused.code, refused.error) == (
        3,
        "cannot list jobs: the cluster does not accept your credentials; log in again",
    )
    for cluster in config["clusters"]:
        for trust in ("certificate-authority", "certificate-authority-data"):
            cluster["cluster"].pop(trust, None)
    broken.write_text(yaml.safe_dump(config))
    untrusted = await trainyard("list", "--kubeconfig", str(broken))
    assert untrusted.code == 3
    assert " does not respond: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: " in untrusted.error
    nothing = await trainyard("list", KUBECONFIG=str(tmp_path / "none"))
    assert (nothing.code, nothing.error.startswith("no cluster is configured: ")) == (3, True)


async def test_a_cluster_without_the_crd_says_how_to_install_it(bare_cluster: Cluster, trainyard: Command) -> None:
    crd = "customresourcedefinitions.apiextensions.k8s.io/trainingjobs.trainyard.dev"
    bare_cluster.run([bare_cluster.kubectl, "delete", "--ignore-not-found", crd])
    for arguments in (["list"], ["status", "job"], ["top"], ["submit", "-"]):
        done = await trainyard(*arguments, "--kubeconfig", str(bare_cluster.kubeconfig), stdin=manifest())
        assert done.code == 3
        assert done.error.endswith(
            "the cluster has no TrainingJob resource; install Trainyard on it, see docs/install.md"
        )


async def test_a_missing_permission_is_named(trainyard: Command, namespace: Namespace, tmp_path: Path) -> None:
    account = namespace.core("serviceaccounts")
    await namespace.api.post(account, {"metadata": {"name": "guest"}})
    answer = await namespace.api.post(f"{account}/guest/token", {"spec": {}})
    config = yaml.safe_load(trainyard.kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": answer["status"]["token"]}} for user in config["users"]]
    guest = tmp_path / "guest"
    guest.write_text(yaml.safe_dump(config))
    done = await trainyard("list", "--kubeconfig", str(guest))
    assert done.code == 2
    assert f'User "system:serviceaccount:{namespace.name}:guest" cannot list resource "trainingjobs"' in done.error
    assert done.error.endswith("ask for that permission")
    # The trace of a job is fetched over a WebSocket, whose refusal comes by another way.
    await namespace.create_job(make_manifest(trainer=trainer_spec(), checkpoint={"claim": {"size": "1Gi"}}))
    await namespace.has_pods("job-1-0", "job-1-1")
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace.name}"
    reads = {"apiGroups": [constants.GROUP], "resources": [constants.PLURAL], "verbs": ["get"]}
    await namespace.api.post(f"{rbac}/roles", {"metadata": {"name": "reader"}, "rules": [reads]})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    subject = {"kind": "ServiceAccount", "name": "guest", "namespace": namespace.name}
    binding = {"metadata": {"name": "reader"}, "roleRef": role, "subjects": [subject]}
    await namespace.api.post(f"{rbac}/rolebindings", binding)
    done = await trainyard("profile", "job", "--kubeconfig", str(guest))
    assert done.code == 2
    assert 'cannot get resource "pods/exec"' in done.error


async def test_a_finished_job_and_an_equal_value_are_not_changed(trainyard: Command, namespace: Namespace) -> None:
    await trainyard("submit", "-", stdin=manifest(restartPolicy={"maxRestarts": 0}))
    await namespace.has_pods("job-1-0", "job-1-1")
    before = (await namespace.job())["metadata"]["generation"]
    assert (await trainyard("resume", "job")).out == "job is not suspended\n"
    assert (await trainyard("scale", "job", "2")).out == "job has 2 workers already\n"
    assert (await namespace.job())["metadata"]["generation"] == before
    await run_all(namespace, "job-1-0", "job-1-1")
    await namespace.has_phase("Running")
    await end_all(namespace, "job-1-0", "job-1-1", code=1)
    await namespace.has_phase("Failed")
    for arguments in (["suspend", "job"], ["resume", "job"], ["restart", "job"], ["scale", "job", "3"]):
        done = await trainyard(*arguments)
        assert done.error == "job has finished (Failed) and cannot be changed; delete it and create it again"
        assert done.code == 2


async def test_the_log_of_a_deleted_pod_is_reported_as_deleted(trainyard: Command, namespace: Namespace) -> None:
    await trainyard("submit", "-", stdin=manifest(restartPolicy={"backoff": {"initialSeconds": 0}}))
    await namespace.has_pods("job-1-0", "job-1-1")
    await run_all(namespace, "job-1-0", "job-1-1")
    await namespace.has_phase("Running")
    await end_all(
        namespace, "job-1-1", code=1, message=termination_message(rank=1, message="ValueError: [rank1]: bad sample")
    )

    async def going() -> None:
        assert "deletionTimestamp" in (await namespace.pods())["job-1-0"]["metadata"]

    await eventually(going)
    await finish_deletion(namespace, "job-1-0")
    await namespace.has_pods("job-2-0", "job-2-1")
    done = await trainyard("logs", "job", "--failed")
    assert done.error == "pod job-1-1 of attempt 1 is deleted, and its log with it; from the job's status:"
    assert "[rank1]: bad sample" in done.out
    assert "[rank1]: bad sample" in (await trainyard("status", "job")).out


class Relay:
    """A relay to an API server; while it is stopped the API server is unreachable."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._config: dict[str, Any] = yaml.safe_load(kubeconfig.read_text())
        self._host, _, port = self._cluster["server"].removeprefix("https://").partition(":")
        self._target = int(port)
        self._ends: list[asyncio.StreamWriter] = []
        self.port = 0
        self.kubeconfig = folder / "relayed"
        """Kubeconfig that reaches the API server through this relay."""

    @property
    def _cluster(self) -> dict[str, Any]:
        cluster: dict[str, Any] = self._config["clusters"][0]["cluster"]
        return cluster

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]
        self._cluster["server"] = f"https://127.0.0.1:{self.port}"
        self.kubeconfig.write_text(yaml.safe_dump(self._config))

    def stop(self) -> None:
        self._listener.close()
        for end in self._ends:
            end.close()
        self._ends.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beyond_reader, beyond_writer = await asyncio.open_connection(self._host, self._target)
        self._ends += writer, beyond_writer
        await asyncio.gather(self._copy(reader, beyond_writer), self._copy(beyond_reader, writer))

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()


@pytest.fixture
async def relay(trainyard: Command, tmp_path: Path) -> AsyncIterator[Relay]:
    relay = Relay(trainyard.kubeconfig, tmp_path)
    await relay.start()
    yield relay
    relay.stop()


async def test_submit_watch_survives_a_restart_of_the_api_server(
    trainyard: Command, namespace: Namespace, relay: Relay, tmp_path: Path
) -> None:
    stderr = tmp_path / "stderr"
    watching = asyncio.create_task(
        trainyard("submit", "-", "--watch", stdin=manifest(), stderr=stderr, KUBECONFIG=str(relay.kubeconfig))
    )
    await namespace.has_pods("job-1-0", "job-1-1")
    await run_all(namespace, "job-1-0", "job-1-1")
    await says(stderr, "AllWorkersRunning")
    relay.stop()
    await says(stderr, f"waiting: https://127.0.0.1:{relay.port} does not respond: ")
    await relay.start()
    await says(stderr, "the cluster responds again")
    words = termination_message(rank=0, progress=Progress(step=100, total_steps=100, loss=1.5))
    await end_all(namespace, "job-1-0", "job-1-1", message=words)
    done = await watching
    assert done.code == 0
    assert "Succeeded" in done.out


async def test_top_survives_a_restart_of_the_api_server(trainyard: Command, relay: Relay) -> None:
    await trainyard("submit", "-", stdin=manifest())
    env = {**trainyard.env, "KUBECONFIG": str(relay.kubeconfig), "TERM": "xterm"}
    terminal = Terminal([*PROGRAM, "top", "--every", "0.2"], env)
    try:
        await terminal.shows("1 TrainingJob in namespace", times=2)
        relay.stop()
        await terminal.shows("does not respond", times=2)
        await relay.start()
        terminal.shown = ""
        await terminal.shows("1 TrainingJob in namespace", times=3)
        assert "does not respond" not in terminal.shown.rpartition("1 TrainingJob ")[0].rpartition("1 TrainingJob ")[2]
        terminal.press("q")
        assert await asyncio.to_thread(terminal.process.wait, 30) == 0
    finally:
        terminal.close()


async def says(file: Path, text: str) -> None:
    async def check() -> None:
        assert text in await asyncio.to_thread(file.read_text)

    await eventually(check)


async def test_a_job_that_is_deleted_while_it_is_watched_has_failed(trainyard: Command, namespace: Namespace) -> None:
    watching = asyncio.create_task(trainyard("submit", "-", "--watch", stdin=manifest()))
    await namespace.has_pods("job-1-0", "job-1-1")
    assert (await trainyard("delete", "job", "--yes")).code == 0
    done = await watching
    assert (done.code, done.err.splitlines()[-1]) == (1, "error: job was deleted before it finished")
