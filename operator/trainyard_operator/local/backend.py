"""The process backend: runs each pod as a process tree on this machine, without a cluster.

Pods are kept in the form of the API server, so the controller works with both backends alike. This module also does
what a node and a network would do: each process finds its peers at 127.0.0.1, and gets its own metrics port and a share
of the CPUs. Images, volumes and resource limits do not apply; a capacity in pods can be set.
"""

import asyncio
import os
import secrets
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from trainyard.net import free_port
from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import TrainingJobStatus
from trainyard_operator.controller import launcher_client
from trainyard_operator.controller.backend import OnCreated, ignore
from trainyard_operator.controller.http import pod_url
from trainyard_operator.controller.unreadable import UnreadableJob
from trainyard_operator.lifecycle.observation import Pod, WorkerPod, observe_pod
from trainyard_operator.lifecycle.status_builder import Event
from trainyard_operator.local import pod_status
from trainyard_operator.local.local_pod import HOST, LocalPod, env_value, expand, read_termination_message
from trainyard_operator.local.process_tree import die_with_parent, kill_process_tree

POD_UID_VARIABLE = "TRAINYARD_POD_UID"
"""Environment variable that identifies the process tree of a pod."""
GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for a pod."""
CHECKPOINT_FOLDER = "checkpoints"
"""Folder of the checkpoints in that of a run."""
PROBE_SECONDS = 0.25
"""Period of the readiness probe, in seconds."""


class ProcessBackend:
    """Runs the children of jobs as files and processes (see `trainyard_operator.controller.backend.Backend`)."""

    def __init__(self, folder: Path, on_pod: Callable[[Pod, bool], None], capacity: int | None = None) -> None:
        """Create a backend without pods.

        Args:
            folder: where configuration, logs and checkpoints are kept.
            on_pod: called with each new state of a pod, and with True once it is gone.
            capacity: how many pods may run at a time; the others are unschedulable. None: any number.
        """
        self.folder = folder.absolute()  # a program may change its working directory
        self._capacity = capacity
        self._scheduling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.events: list[Event] = []
        self._on_pod = on_pod
        self._running: dict[str, LocalPod] = {}
        self._config: dict[str, Path] = {}
        self._revisions: dict[str, dict[str, Any]] = {}
        self._secrets: dict[str, dict[str, str]] = {}
        self._key = secrets.token_bytes(32)
        self._ports: dict[str, int] = {}
        self._version = 0

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        """Return the job with its new status; there are no other writers, so it is never stale."""
        metadata = job.metadata.model_copy(update={"resource_version": self._next_version()})
        return job.replace(metadata=metadata, status=status)

    async def report_unreadable(self, job: UnreadableJob, patch: Mapping[str, Any]) -> bool:
        """Return False, so that the problem is recorded as an event, which the command prints."""
        return False

    async def dry_run(self, job: TrainingJob, pod: dict[str, Any]) -> str | None:
        """Return None: this machine runs a pod's command, and uses nothing else that a template may hold."""
        return None

    async def store_revision(self, job: TrainingJob, revision: dict[str, Any]) -> dict[str, Any]:
        """Keep a snapshot as long as this run lasts."""
        return self._revisions.setdefault(revision["metadata"]["name"], revision)

    async def load_revision(self, job: TrainingJob, name: str) -> dict[str, Any] | None:
        """Return a snapshot that this run has stored."""
        return self._revisions.get(name)

    async def list_pods(self, job: TrainingJob, *, other_than: int | None = None) -> list[Pod]:
        """Return the pods; a backend runs one job."""
        return [r.pod for r in self._running.values() if observe_pod(r.pod).attempt != other_than]

    async def create(
        self,
        job: TrainingJob,
        manifests: Sequence[dict[str, Any]],
        *,
        first: int = 1,
        on_created: OnCreated = ignore,
    ) -> None:
        """Write configuration files, and start processes as far as there is capacity; no Service is needed."""
        pods = []
        for manifest in manifests:
            name = manifest["metadata"]["name"]
            if manifest["kind"] == "ConfigMap":
                self._config[name] = self._write_config(manifest)
            if manifest["kind"] == "Secret":
                self._secrets[name] = manifest["stringData"]
            if manifest["kind"] == "Pod":
                if name not in self._running:
                    self._running[name] = self._make_pod(job, manifest)
                pods.append(name)
        await self._schedule()
        for name in pods:
            on_created(self._running[name].pod)

    async def delete_groups(self, job: TrainingJob, api_version: str, *, other_than: int | None = None) -> None:
        """Do nothing: pods start as soon as there is capacity, in no group."""

    async def find_queue_problem(self, job: TrainingJob, queue: str) -> str | None:
        """Return None: a run on this machine waits in no queue."""
        return None

    async def delete_pods(self, job: TrainingJob, workers: Sequence[WorkerPod], *, force: bool = False) -> None:
        """Send SIGTERM to processes, or kill them at once; the watcher of each process removes its pod."""
        async with self._scheduling:  # no pod may start meanwhile
            for worker in workers:
                running = self._running.get(worker.name)
                if running is not None and running.pod["metadata"]["uid"] == worker.uid:
                    self._delete(running, force)

    async def delete_job(self, job: TrainingJob) -> None:
        """Do nothing: the job of a run ends with it."""

    def _delete(self, running: LocalPod, force: bool) -> None:
        self._change(running, metadata={"deletionTimestamp": pod_status.timestamp(0 if force else GRACE)})
        if running.watcher is None or running.watcher.done():
            self._remove(running)
        elif force:
            kill_process_tree(POD_UID_VARIABLE, running.pod["metadata"]["uid"])
        else:
            self._signal(running)

    async def record_event(self, job: TrainingJob | UnreadableJob, event: Event) -> None:
        """Keep the event, for the command to print."""
        self.events.append(event)

    def metrics_url(self, job: TrainingJob, worker: WorkerPod) -> URL | None:
        """Return the URL of a pod's metrics page at the port that the pod got on this machine."""
        running, page = self._running.get(worker.name), job.spec.metrics_endpoint
        return pod_url(HOST, running.metrics_port, page.path) if running and page else None

    def launcher_token(self, job: TrainingJob) -> str:
        """Return the job's token (`launcher_client.job_token`)."""
        return launcher_client.job_token(self._key, job)

    async def get_launcher_state(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        """Query the launcher at its port on this machine."""
        return await launcher_client.get_state(self._launcher_url(worker), self.launcher_token(job), job)

    async def start_attempt(self, job: TrainingJob, worker: WorkerPod, attempt: int) -> PodState | None:
        """Send a restart request to the launcher at its port on this machine."""
        return await launcher_client.start_attempt(self._launcher_url(worker), self.launcher_token(job), job, attempt)

    async def release(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        """Send a request to exit to the launcher at its port on this machine."""
        return await launcher_client.release(self._launcher_url(worker), self.launcher_token(job), job)

    def _launcher_url(self, worker: WorkerPod) -> URL | None:
        running = self._running.get(worker.name)
        return pod_url(HOST, running.launcher_port, "/") if running and running.launcher_port else None

    def log_file(self, pod_name: str) -> Path:
        """Return the file that holds the output of a pod."""
        return self.folder / "pods" / pod_name / "log"

    async def close(self) -> None:
        """Kill all processes, and wait until they are gone."""
        async with self._scheduling:
            self._capacity = 0
        for running in list(self._running.values()):
            kill_process_tree(POD_UID_VARIABLE, running.pod["metadata"]["uid"])
        watchers = [r.watcher for r in self._running.values() if r.watcher]
        await asyncio.gather(*watchers, return_exceptions=True)

    # --- starting -------------------------------------------------------------------------------------------

    def _write_config(self, manifest: dict[str, Any]) -> Path:
        folder = self.folder / "config"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in manifest["data"].items():
            (folder / name).write_text(text, "utf-8")
        return folder

    def _make_pod(self, job: TrainingJob, manifest: dict[str, Any]) -> LocalPod:
        """Return a pending pod for a manifest.

        Raises:
            Refused: the pod needs a cluster.
        """
        name = manifest["metadata"]["name"]
        folder = self.folder / "pods" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        metadata = {**manifest["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": pod_status.timestamp()}
        metadata["resourceVersion"] = self._next_version()
        pod = {**manifest, "metadata": metadata, "status": pod_status.pending()}
        container = next(c for c in pod["spec"]["containers"] if c["name"] == constants.WORKER_CONTAINER)
        container_env = {entry["name"]: env_value(entry, pod, self._secrets) for entry in container.get("env", ())}
        return LocalPod(job, pod, container, container_env, folder)

    @property
    def capacity(self) -> int | None:
        """How many pods may run at a time; None: any number."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int | None) -> None:
        self._capacity = capacity
        self._schedule_soon()

    async def _schedule(self) -> None:
        """Start pods in the order of their creation, as far as there is capacity."""
        async with self._scheduling:
            for running in [r for r in self._running.values() if r.startable]:
                taken = sum(r.pod["status"]["phase"] == "Running" for r in self._running.values())
                if self._capacity is None or taken < self._capacity:
                    await self._start(running)
                elif "conditions" not in running.pod["status"]:
                    self._change(running, status=pod_status.unschedulable(self._capacity))

    def _schedule_soon(self) -> None:
        task = asyncio.create_task(self._schedule())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, running: LocalPod) -> None:
        container = running.container
        running.metrics_port, running.launcher_port = free_port(), free_port()
        environment = self._environment(running)
        self._change(running, spec={"nodeName": socket.gethostname()})
        with (running.folder / "log").open("wb") as output:
            try:
                running.process = await asyncio.create_subprocess_exec(
                    *(self._local(expand(part, running.variables)) for part in container["command"]),
                    *(expand(part, running.variables) for part in container.get("args", ())),
                    env=environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is for the command, which then stops its pods
                    preexec_fn=die_with_parent,
                )
            except OSError as error:  # reported like the kubelet does: the container failed to start
                self._finish(running, 128, "StartError", f"{container['command'][0]}: {error.strerror}")
                return
        self._set_running(running, ready="readinessProbe" not in container)
        running.watcher = asyncio.create_task(self._watch(running))
        if "readinessProbe" in container:
            running.probe = asyncio.create_task(self._probe(running, container["readinessProbe"]["httpGet"]["path"]))

    def _environment(self, running: LocalPod) -> dict[str, str]:
        """Return the environment of this process, overridden by the container's and then by this machine's values."""
        environment = self._machine_environment(running)
        for name, value in running.container_env.items():
            environment.setdefault(name, expand(value, environment))
        running.variables = environment
        environment = {**os.environ, **environment}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        share = max(1, len(os.sched_getaffinity(0)) // running.job.spec.world_size)
        environment.setdefault("OMP_NUM_THREADS", str(share))
        return environment

    def _machine_environment(self, running: LocalPod) -> dict[str, str]:
        """Return the variables whose values on this machine differ from those on a cluster."""
        labels = running.pod["metadata"]["labels"]
        port = self._ports.setdefault(labels[constants.LABEL_ATTEMPT], free_port())
        job, environment = running.job, dict[str, str]()
        for name in ("MASTER_ADDR", "PET_MASTER_ADDR"):
            environment[name] = HOST
        for name in ("MASTER_PORT", "PET_MASTER_PORT"):
            environment[name] = str(port)
        environment[POD_UID_VARIABLE] = running.pod["metadata"]["uid"]
        environment[launcher_protocol.ENV_TERMINATION_LOG] = str(running.folder / "termination-log")
        environment[constants.ENV_METRICS_PORT] = str(running.metrics_port)
        environment[launcher_protocol.ENV_LAUNCHER_PORT] = str(running.launcher_port)
        environment[constants.ENV_GRACE] = str(GRACE)
        environment[constants.ENV_IMAGE] = ""  # the trainer is that of this environment
        environment[constants.ENV_DEVICE] = ""  # this machine may have no GPU
        if constants.ENV_CHECKPOINTS in running.container_env:
            checkpoints = self.folder / CHECKPOINT_FOLDER
            checkpoints.mkdir(exist_ok=True)
            environment[constants.ENV_CHECKPOINTS] = str(checkpoints)
        if (config := self._config.get(job.metadata.name)) is not None:
            environment[constants.ENV_CONFIG] = str(config / constants.CONFIG_FILE)
        return environment

    def _local(self, part: str) -> str:
        """Return the path on this machine of a file in a pod's configuration; any other argument unchanged."""
        folder = constants.CONFIG_FOLDER + "/"
        return str(self.folder / "config" / part.removeprefix(folder)) if part.startswith(folder) else part

    def _set_running(self, running: LocalPod, *, ready: bool) -> None:
        self._change(running, status=pod_status.running(ready=ready))

    async def _probe(self, running: LocalPod, path: str) -> None:
        """Probe the readiness of a pod periodically, as a kubelet does."""
        url, was_ready = f"http://{HOST}:{running.launcher_port}{path}", False
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                await asyncio.sleep(PROBE_SECONDS)
                try:
                    async with session.get(url) as response:
                        ready = response.status == HTTPStatus.OK
                except (aiohttp.ClientError, TimeoutError):
                    ready = False
                if ready != was_ready:
                    was_ready = ready
                    self._set_running(running, ready=ready)

    # --- ending ---------------------------------------------------------------------------------------------

    async def _watch(self, running: LocalPod) -> None:
        """Wait for the process to exit, kill what is left of its tree, and update the pod."""
        assert running.process is not None
        code = await running.process.wait()
        if running.probe is not None:
            running.probe.cancel()
        kill_process_tree(POD_UID_VARIABLE, running.pod["metadata"]["uid"])
        code = 128 - code if code < 0 else code
        self._finish(
            running, code, "Completed" if code == 0 else "Error", read_termination_message(running.folder, code)
        )
        if "deletionTimestamp" in running.pod["metadata"]:
            self._remove(running)

    def _finish(self, running: LocalPod, code: int, reason: str, message: str) -> None:
        self._change(running, status=pod_status.ended(code, reason, message))
        self._schedule_soon()

    def _signal(self, running: LocalPod) -> None:
        """Send SIGTERM now, and SIGKILL to the complete process tree after the grace period."""
        process, uid = running.process, running.pod["metadata"]["uid"]
        if process is not None and process.returncode is None:
            process.terminate()
            asyncio.get_running_loop().call_later(GRACE, kill_process_tree, POD_UID_VARIABLE, uid)

    def _remove(self, running: LocalPod) -> None:
        self._running.pop(running.pod["metadata"]["name"], None)
        self._on_pod(running.pod, True)

    def _change(self, running: LocalPod, **parts: dict[str, Any]) -> None:
        """Publish a new version of a pod; earlier versions that were handed out do not change."""
        pod = dict(running.pod)
        for part, fields in parts.items():
            pod[part] = {**pod[part], **fields}
        pod["metadata"] = {**pod["metadata"], "resourceVersion": self._next_version()}
        running.pod = pod
        self._on_pod(pod, False)

    def _next_version(self) -> str:
        self._version += 1
        return str(self._version)
