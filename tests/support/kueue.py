"""A real Kueue, for a cluster without nodes: its chart without the Deployment, and its manager as a process.

The API server reaches the webhooks of that process by a Service of type ExternalName.
"""

import base64
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import Cluster
from tests.cluster.add_ons import KUEUE
from tests.cluster.process import spawn, stop, tail
from tests.support.controllers import free_port
from tests.support.kube import Api, Namespace, Object

SYSTEM = "kueue-system"
SERVICE, SECRET = "kueue-webhook-service", "kueue-webhook-server-cert"
MANAGED = {"kueue-managed": "true"}
"""Label of the namespaces whose pods Kueue manages."""
API = "/apis/kueue.x-k8s.io/v1beta2"
_WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")


@contextmanager
def kueue(cluster: Cluster, folder: Path, **settings: Any) -> Iterator[None]:
    """Kueue with its integration pod, for the time of the context; `settings` are more fields of its configuration."""
    folder.mkdir(exist_ok=True)
    webhooks, health = free_port(), free_port()
    configuration = _configuration(folder, webhooks, health) | settings
    objects = [_reachable(body, webhooks) for body in _chart(cluster, folder, configuration)]
    _apply(cluster, objects)
    file, log = folder / "configuration.yaml", folder / "kueue.log"
    file.write_text(yaml.safe_dump(configuration), "utf-8")
    process = spawn([str(KUEUE.program()), f"--config={file}", f"--kubeconfig={cluster.kubeconfig}"], log, folder)
    try:
        _mount_certificate(cluster, folder)
        _wait(lambda: process.alive() and _is_ready(health), "Kueue is not ready", log)
        yield
        assert process.alive(), f"Kueue has ended: {tail(log)}"
    finally:
        stop([process], grace=1)
        # Pods can be created again without Kueue.
        for body in objects:
            if body["kind"] in _WEBHOOKS:
                cluster.run([cluster.kubectl, "delete", body["kind"], body["metadata"]["name"]])


def _configuration(folder: Path, webhooks: int, health: int) -> Object:
    """Return the configuration of docs/scheduling.md, with what a process outside of the cluster needs."""
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": SYSTEM,
        "managedJobsNamespaceSelector": {"matchLabels": MANAGED},
        "integrations": {"frameworks": ["pod"]},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": webhooks, "certDir": str(folder)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": True, "webhookServiceName": SERVICE, "webhookSecretName": SECRET},
        "featureGates": {"VisibilityOnDemand": False},  # it listens on a fixed port
    }


def _chart(cluster: Cluster, folder: Path, configuration: Object) -> list[Object]:
    """Return the objects of Kueue's chart that matter without its Deployment."""
    values = {"managerConfig": {"controllerManagerConfigYaml": yaml.safe_dump(configuration)}}
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    chart = KUEUE.sources() / "charts" / "kueue"
    command: list[str | Path] = [
        cluster.toolbox.path("helm"),
        "template",
        "kueue",
        chart,
        f"--namespace={SYSTEM}",
        f"--values={file}",
    ]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kinds = ("CustomResourceDefinition", "Secret", *_WEBHOOKS)
    return [body for body in yaml.safe_load_all(rendered) if body and body["kind"] in kinds]


def _reachable(body: Object, port: int) -> Object:
    """Return an object whose webhooks are at a port of the external name."""
    clients = [webhook["clientConfig"] for webhook in body.get("webhooks", ())]
    if conversion := body.get("spec", {}).get("conversion", {}).get("webhook"):
        clients.append(conversion["clientConfig"])
    for client in clients:
        client["service"]["port"] = port
    return body


def _apply(cluster: Cluster, objects: list[Object]) -> None:
    external = {"type": "ExternalName", "externalName": "localhost"}
    own: list[Object] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE, "namespace": SYSTEM}, "spec": external},
    ]
    apply: list[str | Path] = [cluster.kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-"]
    cluster.run(apply, input=yaml.safe_dump_all([*own, *objects]))
    crds = [f"crd/{body['metadata']['name']}" for body in objects if body["kind"] == "CustomResourceDefinition"]
    cluster.run([cluster.kubectl, "wait", "--for=condition=Established", "--timeout=30s", *crds])


def _mount_certificate(cluster: Cluster, folder: Path) -> None:
    """Write the certificate that Kueue makes where its manager expects it, as a kubelet mounts the Secret."""
    get: list[str | Path] = [cluster.kubectl, "-n", SYSTEM, "get", "secret", SECRET, "-o", "json"]

    def data() -> dict[str, str]:
        found: dict[str, str] = json.loads(cluster.run(get).stdout).get("data") or {}
        return found

    _wait(lambda: "tls.crt" in data(), "Kueue makes no certificate", folder / "kueue.log")
    for name, value in data().items():
        (folder / name).write_bytes(base64.b64decode(value))


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:
        return False


def _wait(check: Callable[[], bool], problem: str, log: Path, *, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"{problem}: {tail(log)}"
        time.sleep(0.1)


async def make_queue(
    namespace: Namespace, name: str = "research", *, cpus: int, checks: Sequence[str] = (), **flavor: Any
) -> None:
    """Create a LocalQueue with a quota of CPUs, in which a job of higher priority preempts those of lower.

    `checks` are admission checks, `flavor` is the spec of its ResourceFlavor.
    """
    api, wide = namespace.api, {"name": f"{namespace.name}-{name}"}
    flavors = [{**wide, "resources": [{"name": "cpu", "nominalQuota": cpus}]}]
    quota: Object = {
        "namespaceSelector": {},
        "resourceGroups": [{"coveredResources": ["cpu"], "flavors": flavors}],
        "preemption": {"withinClusterQueue": "LowerPriority"},
    }
    if checks:
        quota["admissionChecksStrategy"] = {"admissionChecks": [{"name": check} for check in checks]}
    await create(api, "ResourceFlavor", wide, flavor)
    await create(api, "ClusterQueue", wide, quota)
    await create(api, "LocalQueue", {"name": name, "namespace": namespace.name}, {"clusterQueue": wide["name"]})


async def create(api: Api, kind: str, metadata: Object, spec: Object) -> None:
    """Create an object of Kueue."""
    body = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": metadata, "spec": spec}
    within = f"namespaces/{metadata['namespace']}/" if "namespace" in metadata else ""
    plural = f"{kind.lower()}s".replace("topologys", "topologies")
    await api.post(f"{API}/{within}{plural}", body, fieldValidation="Strict")


async def workloads(namespace: Namespace) -> dict[str, Object]:
    """Return the Workloads of a namespace."""
    items = (await namespace.api.get(f"{API}/namespaces/{namespace.name}/workloads"))["items"]
    return {item["metadata"]["name"]: item for item in items}


def describe(workload: Object) -> str:
    """Return the conditions of a Workload for a message."""
    return json.dumps(workload.get("status", {}).get("conditions", []))
