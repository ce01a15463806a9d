"""What `trainyard` reads of a job's pods: through a real kubelet."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.world import Body, World, trainer_job

pytestmark = pytest.mark.e2e


def command(world: World, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "trainyard_cli.main", *arguments, "-n", world.namespace]


def trainyard(world: World, *arguments: str) -> str:
    """Run the command in the network of the cluster, as a user of it would."""
    return str(world.cluster.run(command(world, *arguments), timeout=120).stdout)


def test_logs_ranks_plot_and_a_trace_of_a_running_job(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec: Body = {"checkpoint": {"volume": {"emptyDir": {}}}, "health": {"straggler": {}}}
    world.apply(trainer_job("seen", steps=1_000_000, **spec))
    world.await_step("seen", 50)

    lines = trainyard(world, "logs", "seen", "--tail", "20").splitlines()
    assert len(lines) <= 20
    reports = [entry for entry in map(json.loads, lines) if "step" in entry]
    assert [(entry["rank"], entry["attempt"]) for entry in reports] == [(0, 1)] * len(reports)
    assert reports[-1]["step"] >= 50
    assert trainyard(world, "logs", "seen", "--rank", "1") == ""
    prefixed = trainyard(world, "logs", "seen", "--all", "--tail", "3").splitlines()
    assert [line.split()[0] for line in prefixed] == ["seen-1-0"] * 3

    follow = [*world.cluster.command_prefix, *command(world, "logs", "seen", "--all", "--follow", "--tail", "1")]
    with subprocess.Popen(follow, env=world.cluster.environment, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        followed = [follower.stdout.readline() for _ in range(3)]  # one is there, the others are yet to come
        follower.terminate()
    assert [line.split()[0] for line in followed] == ["seen-1-0"] * 3

    picture = trainyard(world, "top", "seen", "--once")
    rows = [line for line in picture.splitlines() if "seen-1-" in line]
    assert len(rows) == 2
    for row in rows:
        assert "s ago" in row
        assert "MiB" in row
    assert "a step takes" in picture
    assert "passes" in picture

    drawn = trainyard(world, "plot", "seen")
    assert "seen: loss (nats)" in drawn
    trainyard(world, "plot", "seen", "-o", str(tmp_path / "plot.svg"))
    assert "<svg" in (tmp_path / "plot.svg").read_text()

    trainyard(world, "profile", "seen", "--rank", "1", "--steps", "2", "-o", str(tmp_path / "trace.json.gz"))
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum("Optimizer.step" in event.get("name", "") for event in events) == 2
    with capsys.disabled():
        print(f"\n{picture}\n{drawn}\n{trainyard(world, 'list')}\n{trainyard(world, 'status', 'seen')}")
