"""A stub of the metrics API (metrics.k8s.io), which the API server reaches through an APIService."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from tests.cluster import pki
from tests.support.controllers import free_port
from tests.support.fake_kubelet import now
from tests.support.kube import Api, Object, eventually
from trainyard.time import format_time

GROUP, VERSION = "metrics.k8s.io", "v1beta1"
SERVICE = {"namespace": "kube-system", "name": "metrics"}


class MetricsApi:
    """Says that the pods of a selector share an amount of memory."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.memory = 0
        """Memory that all pods use together, in MiB."""
        self.selectors: list[str] = []
        """Label selectors that were asked for."""

    async def resources(self, _: web.Request) -> web.Response:
        """Return what the group serves."""
        pods = {"name": "pods", "singularName": "", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]}
        head = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}"}
        return web.json_response({**head, "resources": [pods]})

    async def pods(self, request: web.Request) -> web.Response:
        """Return the use of the pods of a namespace that a label selector selects."""
        selector = request.query.get("labelSelector", "")
        self.selectors.append(selector)
        path = f"/api/v1/namespaces/{request.match_info['namespace']}/pods"
        found = (await self._api.get(path, labelSelector=selector))["items"]
        head = {"kind": "PodMetricsList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}}
        return web.json_response({**head, "items": [self._use(pod, len(found)) for pod in found]})

    def _use(self, pod: Object, pods: int) -> Object:
        names = [container["name"] for container in pod["spec"]["containers"]]
        share = {"memory": f"{self.memory * 1024 // pods}Ki"}
        shares = [{"name": name, "usage": share if name == names[0] else {"memory": "0"}} for name in names]
        metadata = {key: pod["metadata"][key] for key in ("name", "namespace", "labels")}
        return {"metadata": metadata, "timestamp": format_time(now()), "window": "30s", "containers": shares}


@asynccontextmanager
async def metrics_api(api: Api, folder: Path) -> AsyncIterator[MetricsApi]:
    """Serve the metrics API of a cluster for the time of the context."""
    stub, port, root = MetricsApi(api), free_port(), f"/apis/{GROUP}/{VERSION}"
    pki.issue(pki.certificate_authority(), pki.Subject("metrics", hosts=["localhost"])).write(folder, "metrics")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "metrics.crt", folder / "metrics.key")
    application = web.Application()
    application.add_routes([web.get(root, stub.resources), web.get(f"{root}/namespaces/{{namespace}}/pods", stub.pods)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "localhost", port, ssl_context=tls).start()
    external = {"type": "ExternalName", "externalName": "localhost"}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": SERVICE, "spec": external}
    spec: Object = {
        "group": GROUP,
        "version": VERSION,
        "service": {**SERVICE, "port": port},
        "insecureSkipTLSVerify": True,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
    }
    kind = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService"}
    services, registered = "/api/v1/namespaces/kube-system/services", "/apis/apiregistration.k8s.io/v1/apiservices"
    try:
        await api.post(services, service)
        await api.post(registered, {**kind, "metadata": {"name": f"{VERSION}.{GROUP}"}, "spec": spec})

        async def available() -> None:
            conditions = (await api.get(f"{registered}/{VERSION}.{GROUP}")).get("status", {}).get("conditions", ())
            assert [c["status"] for c in conditions if c["type"] == "Available"] == ["True"], conditions

        await eventually(available)
        yield stub
    finally:
        await asyncio.gather(
            api.delete(f"{registered}/{VERSION}.{GROUP}"),
            api.delete(f"{services}/{SERVICE['name']}"),
            return_exceptions=True,
        )
        await runner.cleanup()
