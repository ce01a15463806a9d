"""Jobs whose objects are hostile: their pods' metadata, their spec, their template, or what is stored of them."""

from typing import Any

from tests.builders import trainer_spec
from tests.integration.hostile.kind import ELSEWHERE, ELSEWHERE_PORT, Hostile, edits, fails, first_pod, line_with
from tests.integration.hostile.servers import page
from tests.support import kubelet
from tests.support.kube import MERGE, Namespace
from trainyard.protocol import constants

_STEP_3 = page("trainyard_steps_total 3\n")
_SHOWS_3 = r'^progress .*"step": 3\b'
_MAX = 2**31 - 1


# --- what a tenant may do to pods of their own ----------------------------------------------------------------


def _annotated(name: str, annotations: dict[str, str], *, quick: bool = False) -> Hostile:
    """A job whose pod is annotated after its creation; the operator must still read the page that the spec names."""
    return Hostile(
        name=f"annotation-{name}",
        says=_SHOWS_3,
        spec={"metrics": {}},
        page=_STEP_3,
        act=edits({"annotations": annotations}),
        quick=quick,
    )


def _labelled(
    name: str, label: str, value: str | None, says: str = "label|WorkerLost|^Running=True", *, quick: bool = False
) -> Hostile:
    """A job one of whose pods gets another label: either the pod is the job's no longer, or nothing changes."""
    return Hostile(name=f"label-{name}", says=says, act=edits({"labels": {label: value}}), quick=quick)


async def _forge_pod(namespace: Namespace, name: str) -> None:
    """Create a pod that claims to be a worker of the job's attempt 7."""
    await first_pod(namespace, name)
    uid = (await namespace.job(name))["metadata"]["uid"]
    owner = {"apiVersion": constants.API_VERSION, "kind": constants.KIND, "name": name, "uid": uid, "controller": True}
    labels = {constants.LABEL_JOB: name, constants.LABEL_ATTEMPT: "7", constants.LABEL_INDEX: "0"}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-7-0",
            "labels": {**labels, constants.LABEL_REPLICAS: "1"},
            "ownerReferences": [owner],
        },
        "spec": {"containers": [{"name": constants.WORKER_CONTAINER, "image": kubelet.IMAGE}]},
    }
    await namespace.api.post(namespace.core("pods"), body)


async def _overwrite_status(namespace: Namespace, name: str) -> None:
    """Store a status from which no next attempt can be counted, as a restored or edited object may have."""
    await first_pod(namespace, name)
    status = {"attempt": _MAX, "restarts": _MAX, "restartsCounted": _MAX}
    await namespace.api.request("PATCH", namespace.jobs(name, "status"), {"status": status}, content_type=MERGE)


async def _take_service(namespace: Namespace, name: str) -> None:
    """Take the name of the job's Service."""
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
    await namespace.api.post(namespace.core("services"), body)
    await namespace.edit({"suspend": False}, name)


async def _pin_pod(namespace: Namespace, name: str) -> None:
    """Keep a pod from ever being deleted, and make the operator delete it."""
    pod = await first_pod(namespace, name)
    await namespace.api.patch(namespace.core("pods", pod), {"metadata": {"finalizers": ["example.com/never"]}})
    await namespace.edit({"workers": {"replicas": 2}}, name)


PODS = (
    _annotated("port-abc", {constants.ANNOTATION_PORT: "abc"}, quick=True),
    _annotated(
        "path-elsewhere",
        {constants.ANNOTATION_PATH: f"@{ELSEWHERE}:{ELSEWHERE_PORT}/latest/meta-data"},
        quick=True,
    ),
    _annotated("empty", {constants.ANNOTATION_PORT: "", constants.ANNOTATION_PATH: ""}),
    _annotated("200kb", {"example.com/note": "x" * 200_000}),
    _labelled("attempt-62-digits", constants.LABEL_ATTEMPT, "9" * 62, quick=True),
    _labelled("attempt-max", constants.LABEL_ATTEMPT, str(_MAX)),
    _labelled("index-62-digits", constants.LABEL_INDEX, "9" * 62),
    _labelled(
        "replicas-62-digits", constants.LABEL_REPLICAS, "9" * 62, "label|WorkerLost|^Running=True|Resized|workers"
    ),
    _labelled("job-removed", constants.LABEL_JOB, None),
    Hostile(name="pod-forged", says="attempt 7|label", act=_forge_pod),
    Hostile(name="pod-pinned", says=line_with("WaitingForOldPods", "pod-pinned-1-0|1 pod"), act=_pin_pod),
    Hostile(name="status-max", says="^phase ", act=_overwrite_status),
    Hostile(name="name-taken", says="NameTaken", spec={"suspend": True}, act=_take_service, quick=True),
)


# --- specs ----------------------------------------------------------------------------------------------------


def _template(name: str, spec: dict[str, Any], says: str, *, quick: bool = False, **more: Any) -> Hostile:
    """A job with a malformed pod template."""
    return Hostile(
        name=f"template-{name}",
        says=line_with("InvalidSpec|PodsRefused|invalid", f"template|{says}"),
        spec={"workers": {"replicas": 1, "template": {"spec": spec}}, **more},
        quick=quick,
    )


_CLAIM: dict[str, Any] = {"trainer": trainer_spec(), "checkpoint": {"claim": {"size": "1Gi"}}}

TEMPLATES = (
    _template("no-name", {"containers": [{"image": "y"}]}, "containers|name", quick=True),
    _template("null-container", {"containers": [None]}, "containers"),
    _template("secrets-text", {"imagePullSecrets": ["mine"]}, "imagePullSecrets"),
    _template("grace-text", {"terminationGracePeriodSeconds": "2m"}, "terminationGracePeriodSeconds", **_CLAIM),
    _template("affinity-null", {"affinity": {"nodeAffinity": 5}}, "affinity"),
    _template("env-null", {"containers": [{"name": "worker", "env": [None]}]}, "env|containers"),
    _template("typo", {"nodeselector": {"pool": "gpu"}}, "nodeselector", quick=True),
    _template(
        "5000-errors",
        {"tolerations": [{"key": "k", "operator": f"no-{n}"} for n in range(5000)]},
        "tolerations",
        quick=True,
    ),
    Hostile(
        name="template-annotation-300kb",
        says=line_with("InvalidSpec|PodsRefused|invalid", "template|annotations|long"),
        spec={"workers": {"replicas": 1, "template": {"metadata": {"annotations": {"note": "x" * 300_000}}}}},
    ),
)

SPECS = (
    Hostile(
        name="spec-micro",
        says=line_with("micro"),
        spec={"trainer": trainer_spec(batch={"global": 16, "micro": "abc"})},
        quick=True,
    ),
    Hostile(
        name="spec-shard",
        says=line_with("shard"),
        spec={"trainer": trainer_spec(), "parallelism": {"data": {"shard": "foo"}}},
    ),
    Hostile(name="spec-path", says=line_with("path"), spec={"metrics": {"path": f"@{ELSEWHERE}/x"}}),
    Hostile(
        name="spec-quota-storm",
        says=line_with("PodsRefused", "quota"),
        spec={"workers": {"replicas": 10_000}},
        quota=True,
        quick=True,
    ),
    Hostile(
        name="restart-storm",
        says="BackingOff|back-?off|restart",
        spec={
            "restartPolicy": {
                "backoff": {"initialSeconds": 0, "maxSeconds": 0},
                "rules": [{"onReasons": ["Error"], "action": "RestartIgnoringLimit"}],
            }
        },
        start=fails("again"),
        quick=True,
    ),
    Hostile(
        name="admission-storm",
        says="UnexpectedAdmissionError|OutOf",
        start=lambda _: {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no device"},
    ),
    Hostile(
        name="image-invalid",
        says=line_with("image"),
        start=lambda _: kubelet.waiting("InvalidImageName", 'couldn\'t parse image name "%%": invalid reference'),
    ),
    # What an earlier or later version of the CRD has let in.
    Hostile(name="stored-replicas", says="replicas", spec={"workers": {"replicas": "two"}}, stored=True, quick=True),
    Hostile(name="stored-no-workers", says="workers", spec={"workers": None}, stored=True),
    Hostile(name="stored-command", says="command", spec={"command": {"a": 1}}, stored=True),
)
