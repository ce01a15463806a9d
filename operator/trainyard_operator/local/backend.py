"""The world as processes of this machine: a pod is a process with all that it starts, and no cluster is needed.

Pods are kept in the shape that the API server gives them, so everything above works on both worlds alike. What a
node and a network would do is done here: each process finds its peers at 127.0.0.1, gets a metrics port of its
own, and a share of the processors. Images, volumes and resource limits do not apply; how many pods have room is told.
"""

import asyncio
import os
import secrets
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import TrainingJobStatus
from trainyard_operator.controller import launcher_client
from trainyard_operator.lifecycle.observation import Pod, Worker
from trainyard_operator.lifecycle.status_builder import Event
from trainyard_operator.local import pod_status
from trainyard_operator.local.local_pod import HOST, Hosted, free_port, last_words, value_of
from trainyard_operator.local.process_tree import die_with_parent, end_family

MARK = "TRAINYARD_POD_UID"
GRACE = 10.0
"""Seconds between asking a pod to end and killing it."""
PROBE_SECONDS = 0.25
"""From one readiness probe of a pod to the next."""


class ProcessBackend:
    """Children as files and processes (see `trainyard_operator.controller.backend.Backend`)."""

    def __init__(self, folder: Path, on_pod: Callable[[Pod, bool], None], places: int | None = None) -> None:
        """Keep files under `folder`; `on_pod` is called with each new state of a pod, and True once it is gone.

        `places`: how many pods may run at a time, as if this machine had no more room. The others wait.
        """
        self.folder = folder
        self._places = places
        self._filling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.events: list[Event] = []
        self._on_pod = on_pod
        self._running: dict[str, Hosted] = {}
        self._config: dict[str, Path] = {}
        self._secrets: dict[str, dict[str, str]] = {}
        self._key = secrets.token_bytes(32)
        self._ports: dict[str, int] = {}
        self._version = 0

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        """Nobody else writes here, so nothing can be stale."""
        metadata = job.metadata.model_copy(update={"resource_version": self._next_version()})
        return job.replace(metadata=metadata, status=status)

    async def list_pods(self, job: TrainingJob) -> list[Pod]:
        """The pods that there are."""
        return [r.pod for r in self._running.values()]

    async def create(self, job: TrainingJob, manifests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write configuration files, and start processes where there is room; there is no need for a Service."""
        created = []
        for manifest in manifests:
            name = manifest["metadata"]["name"]
            if manifest["kind"] == "ConfigMap":
                self._config[name] = self._write_config(manifest)
            if manifest["kind"] == "Secret":
                self._secrets[name] = manifest["stringData"]
            if manifest["kind"] == "Pod":
                if name not in self._running:
                    self._running[name] = self._accept(job, manifest)
                created.append(name)
        await self._fill()
        return [self._running[name].pod for name in created]

    async def delete_pods(self, job: TrainingJob, workers: Sequence[Worker], *, force: bool = False) -> None:
        """Ask processes to end, or kill them at once; the watcher of each removes the pod."""
        async with self._filling:  # none of them may be about to start
            for worker in workers:
                running = self._running.get(worker.name)
                if running is not None and running.pod["metadata"]["uid"] == worker.uid:
                    self._delete(running, force)

    def _delete(self, running: Hosted, force: bool) -> None:
        self._change(running, metadata={"deletionTimestamp": pod_status.now(0 if force else GRACE)})
        if running.watcher is None or running.watcher.done():
            self._remove(running)
        elif force:
            end_family(MARK, running.pod["metadata"]["uid"])
        else:
            self._signal(running)

    async def tell(self, job: TrainingJob, event: Event) -> None:
        """Keep the event for the end of the run."""
        self.events.append(event)

    def metrics_url(self, pod: Pod) -> str | None:
        """The page that the pod's annotations name, at the port that this machine gave to the pod."""
        running = self._running.get(pod["metadata"]["name"])
        path = (pod["metadata"].get("annotations") or {}).get(constants.ANNOTATION_PATH)
        return f"http://{HOST}:{running.metrics_port}{path}" if running and path else None

    def token(self, job: TrainingJob) -> str:
        """See `launcher_client.job_token`."""
        return launcher_client.job_token(self._key, job)

    async def ask(self, job: TrainingJob, pods: Sequence[Pod]) -> list[PodState | None]:
        """Call the launcher's ports of the pods."""
        return await launcher_client.ask([self._launcher_url(pod) for pod in pods], self.token(job))

    async def order(self, job: TrainingJob, pods: Sequence[Pod], attempt: int | None) -> list[PodState | None]:
        """Call the launcher's ports of the pods."""
        return await launcher_client.order([self._launcher_url(pod) for pod in pods], self.token(job), attempt)

    def _launcher_url(self, pod: Pod) -> str | None:
        running = self._running.get(pod["metadata"]["name"])
        return f"http://{HOST}:{running.launcher_port}" if running else None

    def log_file(self, pod_name: str) -> Path:
        """Where the output of a pod goes."""
        return self.folder / "pods" / pod_name / "log"

    async def close(self) -> None:
        """Kill whatever still runs, and wait until it is gone."""
        async with self._filling:
            self._places = 0
        for running in list(self._running.values()):
            end_family(MARK, running.pod["metadata"]["uid"])
        watchers = [r.watcher for r in self._running.values() if r.watcher]
        await asyncio.gather(*watchers, return_exceptions=True)

    # --- starting -------------------------------------------------------------------------------------------

    def _write_config(self, manifest: dict[str, Any]) -> Path:
        folder = self.folder / "config"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in manifest["data"].items():
            (folder / name).write_text(text, "utf-8")
        return folder

    def _accept(self, job: TrainingJob, manifest: dict[str, Any]) -> Hosted:
        """A pod that is to be started.

        Raises:
            Refused: it cannot be, on this machine.
        """
        name = manifest["metadata"]["name"]
        folder = self.folder / "pods" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        metadata = {**manifest["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": pod_status.now()}
        metadata["resourceVersion"] = self._next_version()
        pod = {**manifest, "metadata": metadata, "status": pod_status.pending()}
        container = next(c for c in pod["spec"]["containers"] if c["name"] == constants.WORKER_CONTAINER)
        given = {entry["name"]: value_of(entry, pod, self._secrets) for entry in container.get("env", ())}
        return Hosted(job, pod, container, given, folder)

    @property
    def places(self) -> int | None:
        """How many pods may run at a time; None: any number."""
        return self._places

    @places.setter
    def places(self, places: int | None) -> None:
        self._places = places
        self._fill_soon()

    async def _fill(self) -> None:
        """Start pods, in the order in which they were made, for as long as there is room."""
        async with self._filling:
            for running in [r for r in self._running.values() if r.waits]:
                taken = sum(r.pod["status"]["phase"] == "Running" for r in self._running.values())
                if self._places is None or taken < self._places:
                    await self._start(running)
                elif "conditions" not in running.pod["status"]:
                    self._change(running, status=pod_status.unschedulable(self._places))

    def _fill_soon(self) -> None:
        task = asyncio.create_task(self._fill())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, running: Hosted) -> None:
        container = running.container
        running.metrics_port, running.launcher_port = free_port(), free_port()
        environment = self._environment(running)
        self._change(running, spec={"nodeName": socket.gethostname()})
        with (running.folder / "log").open("wb") as output:
            try:
                running.process = await asyncio.create_subprocess_exec(
                    *(self._local(part) for part in container["command"]),
                    *container.get("args", ()),
                    env=environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is for the command, which then ends its pods in order
                    preexec_fn=die_with_parent,
                )
            except OSError as error:  # as the kubelet has it: the container failed to start
                self._finish(running, 128, "StartError", f"{container['command'][0]}: {error.strerror}")
                return
        self._set_running(running, ready="readinessProbe" not in container)
        running.watcher = asyncio.create_task(self._watch(running))
        if "readinessProbe" in container:
            running.probe = asyncio.create_task(self._probe(running, container["readinessProbe"]["httpGet"]["path"]))

    def _environment(self, running: Hosted) -> dict[str, str]:
        """The environment of this process, the container's own over it, and this machine's answers over both."""
        labels = running.pod["metadata"]["labels"]
        port = self._ports.setdefault(labels[constants.LABEL_ATTEMPT], free_port())
        job, environment = running.job, {**os.environ, **running.given}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        for name in ("MASTER_ADDR", "PET_MASTER_ADDR"):
            environment[name] = HOST
        for name in ("MASTER_PORT", "PET_MASTER_PORT"):
            environment[name] = str(port)
        share = max(1, len(os.sched_getaffinity(0)) // job.spec.world_size)
        environment.setdefault("OMP_NUM_THREADS", str(share))
        environment[MARK] = running.pod["metadata"]["uid"]
        environment[launcher_protocol.ENV_TERMINATION_LOG] = str(running.folder / "termination-log")
        environment[constants.ENV_METRICS_PORT] = str(running.metrics_port)
        environment[launcher_protocol.ENV_LAUNCHER_PORT] = str(running.launcher_port)
        environment[constants.ENV_GRACE] = str(GRACE)
        if constants.ENV_CHECKPOINTS in running.given:
            environment[constants.ENV_CHECKPOINTS] = str(self.folder / "checkpoints")
        if (config := self._config.get(job.metadata.name)) is not None:
            environment[constants.ENV_CONFIG] = str(config / constants.CONFIG_FILE)
        return environment

    def _local(self, part: str) -> str:
        """Where a file lies here that a pod would find in its configuration."""
        folder = constants.CONFIG_FOLDER + "/"
        return str(self.folder / "config" / part.removeprefix(folder)) if part.startswith(folder) else part

    def _set_running(self, running: Hosted, *, ready: bool) -> None:
        self._change(running, status=pod_status.running(ready=ready))

    async def _probe(self, running: Hosted, path: str) -> None:
        """See again and again whether a pod is ready, as a kubelet does."""
        url, known = f"http://{HOST}:{running.launcher_port}{path}", False
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                await asyncio.sleep(PROBE_SECONDS)
                try:
                    async with session.get(url) as response:
                        ready = response.status == HTTPStatus.OK
                except (aiohttp.ClientError, TimeoutError):
                    ready = False
                if ready != known:
                    known = ready
                    self._set_running(running, ready=ready)

    # --- ending ---------------------------------------------------------------------------------------------

    async def _watch(self, running: Hosted) -> None:
        """Wait for the process, then for nothing of it to be left, and say how it ended."""
        assert running.process is not None
        code = await running.process.wait()
        if running.probe is not None:
            running.probe.cancel()
        end_family(MARK, running.pod["metadata"]["uid"])
        code = 128 - code if code < 0 else code
        self._finish(running, code, "Completed" if code == 0 else "Error", last_words(running.folder, code))
        if "deletionTimestamp" in running.pod["metadata"]:
            self._remove(running)

    def _finish(self, running: Hosted, code: int, reason: str, message: str) -> None:
        self._change(running, status=pod_status.ended(code, reason, message))
        self._fill_soon()

    def _signal(self, running: Hosted) -> None:
        """SIGTERM now, SIGKILL for the whole family after the grace period."""
        process, uid = running.process, running.pod["metadata"]["uid"]
        if process is not None and process.returncode is None:
            process.terminate()
            asyncio.get_running_loop().call_later(GRACE, end_family, MARK, uid)

    def _remove(self, running: Hosted) -> None:
        self._running.pop(running.pod["metadata"]["name"], None)
        self._on_pod(running.pod, True)

    def _change(self, running: Hosted, **parts: dict[str, Any]) -> None:
        """A new version of a pod, made known. Versions that were handed out before stay as they were."""
        pod = dict(running.pod)
        for part, fields in parts.items():
            pod[part] = {**pod[part], **fields}
        pod["metadata"] = {**pod["metadata"], "resourceVersion": self._next_version()}
        running.pod = pod
        self._on_pod(pod, False)

    def _next_version(self) -> str:
        self._version += 1
        return str(self._version)
