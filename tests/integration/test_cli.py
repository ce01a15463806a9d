"""`trainyard` against a real API server with a real operator; the tests act as the kubelet."""

import asyncio
import json
import sys
import termios
from pathlib import Path

import pytest
import yaml

from tests.builders import make_manifest, termination_message, trainer_spec
from tests.support.command import PROGRAM, Command, Terminal, manifest, without_namespace
from tests.support.fake_kubelet import end_all, finish_deletion, run_all
from tests.support.kube import Namespace, eventually
from trainyard.protocol.progress import Progress
from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.errors import ClusterError

ENDS = ["WORKERS", "RESTARTS", "GOODPUT", "AGE"]

pytestmark = pytest.mark.usefixtures("operator")


async def running(namespace: Namespace) -> None:
    await namespace.has_pods("job-1-0", "job-1-1")
    await run_all(namespace, "job-1-0", "job-1-1")
    await namespace.has_phase("Running")


async def test_a_job_is_submitted_shown_changed_and_deleted(trainyard: Command, namespace: Namespace) -> None:
    assert (await trainyard("list")).error == f"there are no TrainingJobs in namespace {namespace.name}"
    created = await trainyard("submit", "-", "-o", "json", stdin=manifest())
    assert (created.code, json.loads(created.out)["metadata"]["name"]) == (0, "job"), created.err
    await running(namespace)

    listed = (await trainyard("list")).out.splitlines()
    assert listed[0].split() == [
        "NAME",
        "PHASE",
        "STEP",
        "LOSS",
        "THROUGHPUT",
        "ETA",
        "WORKERS",
        "RESTARTS",
        "GOODPUT",
        "AGE",
    ]
    assert listed[1].split()[:3] == ["job", "Running", "2/2"]
    body = json.loads((await trainyard("status", "job", "-o", "json")).out)
    assert body["status"]["phase"] == "Running"
    shown = (await trainyard("status", "job")).out
    assert "attempt 1: 2 workers run" in shown
    assert "phase" in shown
    events = [line.split()[1:3] for line in (await trainyard("events", "job")).out.splitlines()]
    assert events == [["TYPE", "REASON"], ["Normal", "Accepted"], ["Normal", "AllWorkersRunning"]]

    assert (await trainyard("scale", "job", "1")).code == 0
    assert (await namespace.job())["spec"]["workers"]["replicas"] == 1
    assert (await trainyard("suspend", "job")).code == 0
    assert (await namespace.job())["spec"]["suspend"] is True
    assert (await trainyard("restart", "job")).error == "job is suspended; start it with: trainyard resume job"
    assert (await trainyard("resume", "job")).code == 0
    assert (await namespace.job())["spec"]["suspend"] is False

    assert "pass --yes" in (await trainyard("delete", "job")).error
    assert (await trainyard("delete", "job", "--yes")).out == "job is deleted\n"

    async def nothing_is_left() -> None:
        assert (await namespace.api.get(namespace.jobs()))["items"] == []

    await eventually(nothing_is_left)


async def test_a_restart_is_a_new_attempt_that_does_not_count(trainyard: Command, namespace: Namespace) -> None:
    await trainyard("submit", "-", stdin=manifest())
    await running(namespace)
    done = await trainyard("restart", "job")
    assert done.out == "job restarts: deleting 2 pods of attempt 1\n", done.err
    for name in ("job-1-0", "job-1-1"):
        await finish_deletion(namespace, name)
    await namespace.has_pods("job-2-0", "job-2-1")
    status = (await namespace.job())["status"]
    assert (status["attempt"], status["restarts"], status["restartsCounted"]) == (2, 1, 0)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1)])
async def test_a_job_that_is_watched_to_its_end_gives_its_exit_code(
    trainyard: Command, namespace: Namespace, code: int, expected: int
) -> None:
    watching = asyncio.create_task(
        trainyard("submit", "-", "--watch", stdin=manifest(restartPolicy={"maxRestarts": 0}, replicas=2))
    )
    await running(namespace)
    words = termination_message(rank=0, progress=Progress(step=100, total_steps=100, loss=1.5), message="no data")
    await end_all(namespace, "job-1-0", "job-1-1", code=code, message=words)
    done = await watching
    assert done.code == expected, done.err
    assert "AllWorkersRunning: attempt 1: 2 workers run" in done.err
    assert ("Succeeded" if code == 0 else "Failed") in done.out


async def test_a_refusal_of_the_server_is_printed_as_it_is(trainyard: Command) -> None:
    bad = make_manifest(trainer=trainer_spec(batch={"global": 15}))
    done = await trainyard("submit", "-", stdin=yaml.safe_dump(without_namespace(bad)))
    assert done.code == 2
    assert "spec.trainer.batch.global: must be a multiple of the number of data-parallel ranks" in done.error
    bad = without_namespace(make_manifest(trainer=trainer_spec()))
    bad["spec"]["replicas"] = 3
    assert 'unknown field "spec.replicas"' in (await trainyard("submit", "-", stdin=yaml.safe_dump(bad))).error
    nameless = await trainyard("submit", "-", stdin="{kind: TrainingJob, metadata: , spec: {}}")
    assert (nameless.code, nameless.error) == (2, "-: metadata.name: is missing; give the job a name")
    elsewhere = await trainyard("submit", "-", "-n", "default", stdin=yaml.safe_dump(make_manifest(namespace="other")))
    assert elsewhere.code == 2
    assert elsewhere.error.startswith("-: metadata.namespace: is other, but --namespace is default; make them equal")
    nothing = await trainyard("submit", "-", stdin="kind: Pod")
    assert (nothing.code, "one TrainingJob is expected, found kind Pod" in nothing.error) == (2, True)


async def test_a_name_that_is_taken_or_unknown_is_an_error_with_a_fix(trainyard: Command) -> None:
    await trainyard("submit", "-", stdin=manifest())
    again = await trainyard("submit", "-", stdin=manifest())
    assert (again.code, again.error.endswith("delete it first, or change it with kubectl apply")) == (2, True)
    for arguments in (
        ["status", "jub"],
        ["scale", "jub", "2"],
        ["logs", "jub"],
        ["delete", "jub", "-y"],
        ["top", "jub"],
    ):
        done = await trainyard(*arguments)
        assert done.code == 2
        assert done.error == f"there is no TrainingJob jub in namespace {trainyard.namespace}; did you mean job?"
    assert (await trainyard("status", "job", "--context", "elsewhere")).code == 2
    assert (await trainyard("status", "job", "-n", trainyard.namespace, "--context", "elsewhere")).code == 0


async def test_names_are_completed(trainyard: Command) -> None:
    await trainyard("submit", "-", stdin=manifest())
    program = Path(sys.executable).parent / "kubectl_complete-trainyard"
    for words, found in ((["status", "j"], ["job"]), (["sus"], ["suspend"]), (["status", "--cont"], ["--context"])):
        process = await asyncio.create_subprocess_exec(
            program, *words, env=trainyard.env, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert out.decode().split() == [*found, ":4"]


async def test_ranks_are_shown_without_metrics_where_none_can_be_read(trainyard: Command, namespace: Namespace) -> None:
    """There is no kubelet behind this API server; with one, see tests/e2e."""
    await trainyard("submit", "-", stdin=manifest())
    await running(namespace)
    lines = (await trainyard("top", "job", "--once")).out.splitlines()
    rows = [line.split()[:4] for line in lines if line.startswith(("0 ", "1 "))]
    assert lines[-1].startswith("some ranks have no metrics: cannot read the metrics of pod job-1-")
    assert rows == [["0", "job-1-0", "node-1", "Running"], ["1", "job-1-1", "node-1", "Running"]]
    assert (await trainyard("top")).out.splitlines()[0].startswith("1 TrainingJob in namespace")
    assert (await trainyard("logs", "job", "--rank", "2")).error == "--rank: job has the ranks 0 to 1; choose one"
    assert (await trainyard("logs", "job", "--failed")).error == "no attempt of job has failed"


@pytest.mark.parametrize("key", ["q", "\x03"])
async def test_top_draws_and_draws_again_until_a_key_ends_it(
    trainyard: Command, namespace: Namespace, key: str
) -> None:
    await trainyard("submit", "-", stdin=manifest())
    await running(namespace)
    command = [*PROGRAM, "top", "job", "--every", "0.2"]
    terminal = Terminal(command, {**trainyard.env, "TERM": "xterm"})
    try:
        await terminal.shows("job-1-1", times=3)
        assert "\x1b[?1049h" in terminal.shown, "on a screen of its own"
        terminal.press(key)
        await terminal.shows("\x1b[?1049l")
        assert await asyncio.to_thread(terminal.process.wait, 30) == 0
        assert termios.tcgetattr(terminal.theirs) == terminal.before, "the terminal is as it was"
    finally:
        terminal.close()


async def test_events_are_shown_as_they_come(trainyard: Command, namespace: Namespace) -> None:
    await trainyard("submit", "-", stdin=manifest())
    terminal = Terminal([*PROGRAM, "events", "job", "--watch"], {**trainyard.env, "TERM": "xterm"})
    try:
        await terminal.shows("Accepted")
        await running(namespace)
        await terminal.shows("AllWorkersRunning")
        assert terminal.shown.count("Accepted") == 1, "an event that has been printed is not printed again"
        terminal.press("\x03")
        assert await asyncio.to_thread(terminal.process.wait, 30) == 130
    finally:
        terminal.close()


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 1, 1)])
async def test_delete_asks_on_a_terminal(
    trainyard: Command, namespace: Namespace, answer: str, code: int, left: int
) -> None:
    await trainyard("submit", "-", stdin=manifest(checkpoint={"claim": {"size": "1Gi"}}))
    terminal = Terminal([*PROGRAM, "delete", "job"], {**trainyard.env, "TERM": "xterm"})
    try:
        await terminal.shows(f"delete {namespace.name}/job and its checkpoints? [y/N]")
        terminal.press(f"{answer}\n")
        assert await asyncio.to_thread(terminal.process.wait, 30) == code
    finally:
        terminal.close()
    assert len((await namespace.api.get(namespace.jobs()))["items"]) == left


async def test_only_the_job_with_the_uid_is_deleted(trainyard: Command, namespace: Namespace) -> None:
    await trainyard("submit", "-", stdin=manifest())

    def delete() -> None:
        Cluster(trainyard.kubeconfig).delete_job("job", "uid of an earlier job of that name")

    with pytest.raises(ClusterError, match="it was changed in the meantime"):
        await asyncio.to_thread(delete)
    assert (await namespace.job())["metadata"]["name"] == "job"


async def test_ctrl_c_while_watching_leaves_the_job_alone(
    trainyard: Command, namespace: Namespace, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(manifest())
    command = [*PROGRAM, "submit", str(file), "--watch"]
    terminal = Terminal(command, {**trainyard.env, "TERM": "xterm"})
    try:
        await running(namespace)
        await terminal.shows("AllWorkersRunning")
        terminal.press("\x03")
        await terminal.shows("job continues; see: trainyard status job")
        assert await asyncio.to_thread(terminal.process.wait, 30) == 130
    finally:
        terminal.close()
    assert (await namespace.job())["status"]["phase"] == "Running"
