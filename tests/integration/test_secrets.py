"""Values of Secrets stay in their Secrets: nothing that the operator writes or logs has one."""

import base64
import json

import pytest

from tests.builders import make_manifest, trainer_spec
from tests.support.fake_kubelet import end_all, run_all
from tests.support.kube import Namespace
from tests.support.operator import OperatorProcess

pytestmark = pytest.mark.usefixtures("operator")
CANARY = "canary-w8d2n6c4z1"
"""The secret; no other text holds it."""
ENCODED = base64.b64encode(CANARY.encode()).decode()
KEY = {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "bucket", "key": "secret"}}}


async def test_no_object_and_no_log_holds_a_secret(namespace: Namespace, operator: OperatorProcess) -> None:
    """The operator has no right to read Secrets; it only passes references to pods on."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}, "data": {"secret": ENCODED}}
    await namespace.api.post(namespace.core("secrets"), secret)
    worker = {"name": "worker", "envFrom": [{"secretRef": {"name": "bucket"}}]}
    manifest = make_manifest(
        replicas=1,
        trainer=trainer_spec(),
        env=[KEY],
        workers={"template": {"spec": {"containers": [worker]}}},
        checkpoint={"url": "s3://bucket/runs"},
        restartPolicy={"maxRestarts": 0},
    )
    await namespace.create_job(manifest)
    pods = await namespace.has_pods("job-1-0")
    assert KEY in pods["job-1-0"]["spec"]["containers"][0]["env"]
    await run_all(namespace, "job-1-0")
    await end_all(namespace, "job-1-0", code=1)
    await namespace.has_phase("Failed")
    revisions = f"/apis/apps/v1/namespaces/{namespace.name}/controllerrevisions"
    paths = [namespace.core(kind) for kind in ("pods", "configmaps", "services", "events")]
    found = [json.dumps(await namespace.api.get(path)) for path in (*paths, namespace.jobs(), revisions)]
    assert all('"items": [{' in listed for listed in found), "each kind was written"
    found.append(operator.log.read_text())
    found.append((await operator.page("/metrics"))[1])
    assert [text for text in found if CANARY in text or ENCODED in text] == []
    assert ENCODED in json.dumps(await namespace.api.get(namespace.core("secrets")))
