"""The namespaces of hostile and honest jobs, with their kubelets and with the servers in their pods."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.builders import make_manifest
from tests.cluster import Cluster
from tests.integration.conftest import CRD, install_crd, leave, new_namespace
from tests.integration.hostile.honest import Honest, honest_jobs
from tests.integration.hostile.kind import ELSEWHERE, ELSEWHERE_PORT, Hostile
from tests.integration.hostile.messages import LAUNCHERS, MESSAGES
from tests.integration.hostile.objects import PODS, SPECS, TEMPLATES
from tests.integration.hostile.pages import PAGES
from tests.integration.hostile.servers import Calls, page, serving
from tests.support import kubelet
from tests.support.fake_kubelet import fake_kubelet
from tests.support.kube import Api, ApiRefusal, Namespace, Object, eventually
from trainyard.protocol import constants, launcher_protocol

KINDS = (*PAGES, *LAUNCHERS, *MESSAGES, *PODS, *TEMPLATES, *SPECS)
"""All kinds of hostile jobs. The index of a kind is part of the address of its pods."""


@dataclass
class Scene:
    """The namespaces, with their kubelets and the servers in their pods."""

    honest: Honest
    hostile: Namespace
    limited: Namespace
    """A namespace with a quota of two pods."""
    elsewhere: Calls

    def namespace_of(self, kind: Hostile) -> Namespace:
        """Return the namespace of the jobs of a kind."""
        return self.limited if kind.quota else self.hostile


def _address(kind: Hostile) -> str:
    return f"127.77.{KINDS.index(kind)}.1"


def _first_status(pod: Object) -> kubelet.Status:
    """Return the status with which a hostile pod starts; its labels may have been changed, its name may not."""
    job = pod["metadata"]["name"].rsplit("-", 2)[0]
    kind = next(kind for kind in KINDS if kind.name == job)
    return kind.start(_address(kind))


@asynccontextmanager
async def set_scene(kinds: Sequence[Hostile], cluster: Cluster, api: Api) -> AsyncIterator[Scene]:
    """Prepare the namespaces for jobs of these kinds, and store those that the present CRD refuses."""
    honest, hostile, limited = [await new_namespace(api) for _ in range(3)]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_leave, honest, hostile, limited)
        stored = [kind for kind in kinds if kind.stored]
        if stored:
            await _store(cluster, hostile, stored)
        await _limit(limited)
        elsewhere = await stack.enter_async_context(serving(ELSEWHERE, ELSEWHERE_PORT, page("trainyard_steps_total 1")))
        for kind in kinds:
            for port, handler in (
                (constants.METRICS_PORT, kind.page),
                (launcher_protocol.LAUNCHER_PORT, kind.launcher),
            ):
                if handler is not None:
                    await stack.enter_async_context(serving(_address(kind), port, handler))
        for namespace in (hostile, limited):
            await stack.enter_async_context(fake_kubelet(namespace, start=_first_status))
        yield Scene(await stack.enter_async_context(honest_jobs(honest)), hostile, limited, elsewhere)


async def _leave(*namespaces: Namespace) -> None:
    for namespace in namespaces:
        for name, pod in (await namespace.pods()).items():
            if pod["metadata"].get("finalizers"):
                await namespace.api.patch(namespace.core("pods", name), {"metadata": {"finalizers": None}})
        await leave(namespace)


async def _limit(namespace: Namespace) -> None:
    """Give a namespace a quota of two pods."""
    hard = {"pods": "2"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": hard}}
    await namespace.api.post(namespace.core("resourcequotas"), quota)
    counted = {"status": {"hard": hard, "used": {"pods": "0"}}}  # what the quota's controller would write
    await namespace.api.patch(namespace.core("resourcequotas", "few", "status"), counted)


async def _store(cluster: Cluster, namespace: Namespace, kinds: Sequence[Hostile]) -> None:
    """Store jobs that the present CRD refuses, as a CRD of another version has let them in."""
    crd = yaml.safe_load(CRD.read_text("utf-8"))
    [version] = crd["spec"]["versions"]
    version["schema"] = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    del version["subresources"]["scale"]  # it requires an integer
    apply: list[str | Path] = [cluster.kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-"]
    await asyncio.to_thread(lambda: cluster.run(apply, input=yaml.safe_dump(crd)))
    try:
        for kind in kinds:
            manifest = make_manifest(kind.name, replicas=1, namespace=namespace.name)
            spec = {**manifest["spec"], **kind.spec}
            manifest["spec"] = {name: value for name, value in spec.items() if value is not None}

            async def create(manifest: Object = manifest) -> None:
                try:
                    await namespace.api.post(namespace.jobs(), manifest)
                except ApiRefusal as error:  # the CRD is served in another form a moment later
                    raise AssertionError(str(error)) from error

            await eventually(create)
    finally:
        await asyncio.to_thread(install_crd, cluster)

    async def refused() -> None:
        manifest = make_manifest("probe", replicas=-1, namespace=namespace.name)
        with suppress(ApiRefusal):
            await namespace.api.post(namespace.jobs(), manifest, dryRun="All")
            raise AssertionError("the CRD is not served yet")

    await eventually(refused)
