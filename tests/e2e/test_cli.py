"""Commands of `trainyard` that read from pods, through a real kubelet."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.namespace import Body, Namespace, trainer_job
from tests.e2e.node_faults import NodeFaults

pytestmark = pytest.mark.e2e


def command(namespace: Namespace, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "trainyard_cli.main", *arguments, "-n", namespace.name]


def trainyard(namespace: Namespace, *arguments: str) -> str:
    """Run the command in the network of the cluster, as a user of it would."""
    return str(namespace.cluster.run(command(namespace, *arguments), timeout=120).stdout)


@pytest.fixture
def checkpoint(namespace: Namespace, node_faults: NodeFaults) -> Iterator[Body]:
    """Return spec.checkpoint of the job `seen`, with a claim for which there is a volume."""
    volume = node_faults.volume(namespace, "seen")
    volume.offer(namespace, "seen")
    yield {"claim": {"size": "1Gi"}}
    namespace.kubectl("delete", "tj", "seen", "--ignore-not-found", check=False)
    volume.withdraw(namespace, wait=False)
    volume.remove()


def test_logs_ranks_plot_and_a_trace_of_a_running_job(
    namespace: Namespace, checkpoint: Body, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = {"template": {"spec": {"terminationGracePeriodSeconds": 10}}}
    spec: Body = {"checkpoint": checkpoint, "health": {"straggler": {}}, "workers": workers}
    namespace.apply(trainer_job("seen", steps=1_000_000, **spec))
    namespace.await_step("seen", 50)

    lines = trainyard(namespace, "logs", "seen", "--tail", "20").splitlines()
    assert len(lines) <= 20
    reports = [entry for entry in map(json.loads, lines) if "step" in entry]
    assert [(entry["rank"], entry["attempt"]) for entry in reports] == [(0, 1)] * len(reports)
    assert reports[-1]["step"] >= 50
    assert trainyard(namespace, "logs", "seen", "--rank", "1") == ""
    prefixed = trainyard(namespace, "logs", "seen", "--all", "--tail", "3").splitlines()
    assert [line.split()[0] for line in prefixed] == ["seen-1-0"] * 3

    follow = [
        *namespace.cluster.command_prefix,
        *command(namespace, "logs", "seen", "--all", "--follow", "--tail", "1"),
    ]
    with subprocess.Popen(follow, env=namespace.cluster.environment, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        followed = [follower.stdout.readline() for _ in range(3)]  # one is there, the others are yet to come
        follower.terminate()
    assert [line.split()[0] for line in followed] == ["seen-1-0"] * 3

    picture = trainyard(namespace, "top", "seen", "--once")
    rows = [line for line in picture.splitlines() if "seen-1-" in line]
    assert len(rows) == 2
    for row in rows:
        assert "s ago" in row
        assert "MiB" in row
    assert "a step takes" in picture
    assert "passes" in picture

    drawn = trainyard(namespace, "plot", "seen")
    assert "seen: loss (nats)" in drawn
    trainyard(namespace, "plot", "seen", "-o", str(tmp_path / "plot.svg"))
    assert "<svg" in (tmp_path / "plot.svg").read_text()

    trainyard(namespace, "profile", "seen", "--rank", "1", "--steps", "2", "-o", str(tmp_path / "trace.json.gz"))
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum("Optimizer.step" in event.get("name", "") for event in events) == 2
    with capsys.disabled():
        print(f"\n{picture}\n{drawn}\n{trainyard(namespace, 'list')}\n{trainyard(namespace, 'status', 'seen')}")
