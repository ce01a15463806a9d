"""The commands of the runbooks work unchanged on a job on a real node."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.namespace import KILL_A_RANK, Namespace, OperatorPod, eventually, trainer_job
from tests.e2e.prometheus import Prometheus

pytestmark = pytest.mark.e2e

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
ELSEWHERE = (
    "kubectl top",  # needs metrics-server, which the test's cluster does not have
    "kubectl get servicemonitor",  # needs the CRDs of the Prometheus Operator
    "port-forward",  # stays in the foreground
)
SILENT = ("-o jsonpath",)
"""Commands that may print nothing for a healthy job, but must succeed."""
EMPTY_HANDED = {
    "grep -i finite": r"",  # grep found no line: the job is healthy
    "logs deploy/trainyard --previous": r"previous terminated container .* not found",  # the operator has never ended
}
"""Commands that exit with 1 where there is nothing to find, and what they print on stderr then."""


def commands(page: Path) -> Iterator[str]:
    """Yield the lines of the page's code blocks."""
    for block in re.findall(r"^```\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        yield from (line.split("   #")[0].strip() for line in block.splitlines())


def fill(command: str, names: dict[str, str], alertmanager: str) -> str:
    """Return a command of a page with its placeholders filled in, and with the address of Alertmanager for amtool."""
    filled = re.sub(r"\b[A-Z]{3,}\b", lambda found: names.get(found[0], found[0]), command)
    return filled.replace("amtool", f"amtool --alertmanager.url=http://{alertmanager}")


def test_every_command_of_every_runbook_works(
    namespace: Namespace, operator_pod: OperatorPod, prometheus: Prometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace.apply(
        trainer_job("job", steps=1_000_000, replicas=1, checkpoint={"everySteps": 5, "volume": {"emptyDir": {}}})
    )
    namespace.await_step("job", 5)
    namespace.kubectl("exec", "job-1-0", "--", "python", "-c", KILL_A_RANK)
    eventually("a checkpoint of attempt 2", lambda: _saved(namespace))
    pod = "job-1-0"  # the second attempt began in place
    failed, tried = [], 0
    for page in sorted(RUNBOOKS.glob("*.md")):
        own = page.stem.startswith("TrainyardOperator")
        where = operator_pod.namespace if own else namespace
        names = {"NAMESPACE": where.name, "JOB": "job", "POD": pod, "NODE": _node(namespace, pod)}
        for command in commands(page):
            if any(part in command for part in ELSEWHERE):
                continue
            filled = fill(command, names, prometheus.alertmanager)
            done = namespace.cluster.run(["bash", "-c", filled], check=False)
            tried += 1
            if command.startswith("amtool silence add"):
                expire = fill(f"amtool silence expire {done.stdout.strip()}", {}, prometheus.alertmanager)
                namespace.cluster.run(["bash", "-c", expire])
            with capsys.disabled():
                print(f"\n$ {filled}\n{done.stdout[:300]}{done.stderr[:300]}")
            works = done.returncode == 0 and (done.stdout.strip() or any(part in command for part in SILENT))
            if not works and not _found_nothing(command, done):
                failed.append(f"{page.name}: {filled}: exit code {done.returncode}: {done.stderr}")
    assert failed == []
    assert tried >= 40


def _found_nothing(command: str, done: subprocess.CompletedProcess[str]) -> bool:
    """Return whether a command that may have nothing to find has failed for that reason, and for no other."""
    reasons = [reason for part, reason in EMPTY_HANDED.items() if part in command]
    exited = done.returncode == 1 and not done.stdout.strip()
    return exited and any(re.search(reason, done.stderr) if reason else not done.stderr.strip() for reason in reasons)


def _saved(namespace: Namespace) -> bool:
    progress = namespace.await_step("job", 5, attempt=2)
    return bool(progress.get("checkpointStep", 0) > progress.get("resumedStep", 0))


def _node(namespace: Namespace, pod: str) -> str:
    return str(namespace.get("pod", pod)["spec"]["nodeName"])
