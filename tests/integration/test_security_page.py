"""The samples of docs/security.md on a real API server: they are accepted, and do what the page says."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import make_manifest, trainer_spec
from tests.cluster import Cluster
from tests.integration.conftest import leave
from tests.integration.hostile.kind import described
from tests.support import kubelet
from tests.support.kube import Api, ApiRefusal, Namespace, Object, eventually
from tests.support.operator import OperatorProcess
from trainyard.protocol import constants

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
TEAM = "team-a"


def samples() -> list[dict[str, Any]]:
    """All objects in the page's YAML."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [body for block in blocks for body in yaml.safe_load_all(block)]


@pytest.fixture
async def team(cluster: Cluster, api: Api, operator: OperatorProcess) -> AsyncIterator[Namespace]:
    """The namespace of the samples, with all of them but the quotas, which nothing here would count."""
    objects = samples()
    quotas = [body for body in objects if body["kind"] == "ResourceQuota"]
    others = [body for body in objects if body["kind"] != "ResourceQuota"]
    cluster.run([cluster.kubectl, "apply", "--server-side", "-f", "-"], input=yaml.safe_dump_all(others))
    dry_run: list[str | Path] = [cluster.kubectl, "apply", "--server-side", "--dry-run=server", "-f", "-"]
    cluster.run(dry_run, input=yaml.safe_dump_all(quotas))
    namespace = Namespace(api, TEAM)
    try:
        yield namespace
    finally:
        await leave(namespace)
        policies = [body for body in others if body["kind"].startswith("ValidatingAdmission")]
        cluster.run([cluster.kubectl, "delete", "-f", "-"], input=yaml.safe_dump_all(policies))


async def says(namespace: Namespace, name: str, *patterns: str) -> None:
    """Wait until the status of a job has a line with all of these patterns."""

    async def check() -> None:
        text = described((await namespace.job(name)).get("status", {}))
        assert any(all(re.search(p, line) for p in patterns) for line in text.splitlines()), text

    await eventually(check)


async def test_in_the_namespace_of_the_samples_jobs_run_as_the_page_says(team: Namespace) -> None:
    container = {
        "name": "c",
        "image": kubelet.IMAGE,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    restricted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "labels": {constants.LABEL_JOB: "probe"}},
        "spec": {"serviceAccountName": "admin", "securityContext": restricted, "containers": [container]},
    }

    async def policy_holds() -> None:
        refusal = ""
        try:
            await team.api.post(team.core("pods"), pod, dryRun="All")
        except ApiRefusal as error:
            refusal = str(error)
        assert "must use the ServiceAccount default" in refusal

    await eventually(policy_holds)
    template = {"template": {"spec": {"serviceAccountName": "admin"}}}
    await team.create_job(make_manifest("trainer", replicas=1, trainer=trainer_spec()))
    await team.create_job(make_manifest("own", replicas=1))
    await team.create_job(make_manifest("account", replicas=1, trainer=trainer_spec(), workers=template))
    await team.has_pods("trainer-1-0")
    await says(team, "own", "PodsRefused|InvalidSpec", "restricted")
    await says(team, "account", "PodsRefused|InvalidSpec", "must use the ServiceAccount default")


def test_the_page_has_each_kind_of_sample() -> None:
    kinds = {body["kind"] for body in samples()}
    assert kinds == {
        "Namespace",
        "ResourceQuota",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "NetworkPolicy",
    }
