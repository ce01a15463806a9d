"""The cluster as the commands see it: the kubernetes client, and one clear line for whatever goes wrong.

The client is imported when a cluster is first asked for: `trainyard run` and `plan` need none, and start without it.
"""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainyard import contract
from trainyard.job import TrainingJob

Body = dict[str, Any]
"""An object as the API server has it."""

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NO_CLUSTER = 1, 2, 3
_WHERE = {"group": contract.GROUP, "version": contract.VERSION, "plural": contract.PLURAL}
_PATIENCE = (5, 60)
"""Seconds for a connection, and from one byte of an answer to the next."""


class ClusterProblem(Exception):
    """What ends a command, in one line, with its exit code."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


class Missing(ClusterProblem):
    """There is no such object."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_BAD_INPUT)


class Cluster:
    """One namespace of a cluster, or all."""

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None, namespace: str | None = None):
        """Log in as kubectl does.

        Raises:
            ClusterProblem: there is no such kubeconfig or context.
        """
        from kubernetes import client, config
        from kubernetes.config import ConfigException

        file = str(kubeconfig) if kubeconfig else None
        try:
            _, current = config.list_kube_config_contexts(file)
            if context is not None:
                current = _context_named(config.list_kube_config_contexts(file)[0], context)
            api = config.new_client_from_config(file, context)
            inside = current["context"].get("namespace") or "default"
        except ConfigException as error:
            if context is None and file is None and _in_a_pod():
                config.load_incluster_config()
                api, inside = client.ApiClient(), _own_namespace()
            else:
                fix = "set KUBECONFIG, or pass --kubeconfig or --context"
                raise ClusterProblem(f"no cluster to ask: {error}; {fix}", EXIT_NO_CLUSTER) from None
        self.namespace = namespace or inside
        self._host = api.configuration.host
        # Its types say what it returns if it parses the answer; where it need not, that is faster.
        self._objects: Any = client.CustomObjectsApi(api)
        self._core: Any = client.CoreV1Api(api)

    # --- jobs ----------------------------------------------------------------------------------------------------

    def bodies(self, *, everywhere: bool = False) -> list[Body]:
        """All jobs as they are stored, by namespace and name."""
        with self._asking("list jobs"):
            if everywhere:
                found = self._objects.list_cluster_custom_object(**_WHERE, _request_timeout=_PATIENCE)
            else:
                found = self._objects.list_namespaced_custom_object(
                    namespace=self.namespace, **_WHERE, _request_timeout=_PATIENCE
                )
        items: list[Body] = found["items"]
        return sorted(items, key=lambda body: (body["metadata"]["namespace"], body["metadata"]["name"]))

    def body(self, name: str) -> Body:
        """One job as it is stored.

        Raises:
            Missing: there is none of that name; like ones are named.
        """
        try:
            with self._asking(f"read job {name}"):
                found: Body = self._objects.get_namespaced_custom_object(
                    name=name, namespace=self.namespace, **_WHERE, _request_timeout=_PATIENCE
                )
                return found
        except Missing:
            names = [body["metadata"]["name"] for body in self.bodies()]
            near = difflib.get_close_matches(name, names, 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; see: trainyard list"
            raise Missing(f"there is no TrainingJob {name} in namespace {self.namespace}{hint}") from None

    def job(self, name: str) -> TrainingJob:
        """One job. Raises what `body` and `parse` raise."""
        return parse(self.body(name))

    def create(self, body: Body) -> Body:
        """Create a job.

        Raises:
            ClusterProblem: the API server refuses it (with its words), or there is one of that name already.
        """
        with self._asking(f"create job {body['metadata'].get('name')}"):
            found: Body = self._objects.create_namespaced_custom_object(
                namespace=self.namespace, body=body, **_WHERE, field_validation="Strict", _request_timeout=_PATIENCE
            )
            return found

    def patch(self, name: str, spec: Body) -> Body:
        """Change fields of a job's spec."""
        self.body(name)  # for the words about one that is missing
        with self._asking(f"change job {name}"):
            found: Body = self._objects.patch_namespaced_custom_object(
                name=name, namespace=self.namespace, body={"spec": spec}, **_WHERE, _request_timeout=_PATIENCE
            )
            return found

    def scale(self, name: str, replicas: int) -> None:
        """Set the number of workers, as `kubectl scale` does."""
        self.body(name)
        with self._asking(f"scale job {name}"):
            self._objects.patch_namespaced_custom_object_scale(
                name=name,
                namespace=self.namespace,
                body={"spec": {"replicas": replicas}},
                **_WHERE,
                _request_timeout=_PATIENCE,
            )

    def delete(self, name: str) -> None:
        """Delete a job; what it owns goes with it."""
        self.body(name)
        with self._asking(f"delete job {name}"):
            self._objects.delete_namespaced_custom_object(
                name=name, namespace=self.namespace, **_WHERE, _request_timeout=_PATIENCE
            )

    # --- what a job has ------------------------------------------------------------------------------------------

    def pods(self, name: str) -> list[Body]:
        """The pods of a job's group, workers first, without placeholders."""
        selector = f"{contract.LABEL_JOB}={name},{contract.LABEL_ROLE}!={contract.ROLE_PLACEHOLDER}"
        with self._asking(f"list the pods of job {name}"):
            found = self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _preload_content=False, _request_timeout=_PATIENCE
            )
            items: list[Body] = json.loads(found.data)["items"]
        return sorted(items, key=_place)

    def delete_pod(self, pod: Body) -> None:
        """Delete this very pod, and none that has taken its name since."""
        metadata = pod["metadata"]
        body = {"preconditions": {"uid": metadata["uid"]}}
        with self._asking(f"delete pod {metadata['name']}"):
            self._core.delete_namespaced_pod(
                metadata["name"], self.namespace, body=body, _preload_content=False, _request_timeout=_PATIENCE
            )

    def events(self, uid: str) -> list[Body]:
        """Events about an object, the oldest first."""
        with self._asking("list events"):
            found = self._core.list_namespaced_event(
                self.namespace,
                field_selector=f"involvedObject.uid={uid}",
                _preload_content=False,
                _request_timeout=_PATIENCE,
            )
            items: list[Body] = json.loads(found.data)["items"]
        return sorted(items, key=_moment)

    def log(self, pod: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """Lines of the log of a pod's worker."""
        with self._asking(f"read the log of pod {pod}"):
            answer = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=contract.WORKER_CONTAINER,
                follow=follow,
                _preload_content=False,
                _request_timeout=(5, None) if follow else _PATIENCE,
                **({} if tail is None else {"tail_lines": tail}),
            )
            rest = b""
            for chunk in answer.stream():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
            if rest:
                yield rest.decode("utf-8", "replace")

    def metrics(self, pod: Body) -> str:
        """The metrics page of a pod, through the API server."""
        about = pod["metadata"].get("annotations") or {}
        name = f"{pod['metadata']['name']}:{about.get(contract.ANNOTATION_PORT, contract.METRICS_PORT)}"
        path = about.get(contract.ANNOTATION_PATH, "/metrics").lstrip("/")
        with self._asking(f"read the metrics of pod {pod['metadata']['name']}"):
            answer = self._core.connect_get_namespaced_pod_proxy_with_path(
                name, self.namespace, path, _preload_content=False, _request_timeout=_PATIENCE
            )
            return str(answer.data.decode("utf-8", "replace"))

    def execute(self, pod: str, command: list[str]) -> str:
        """Run a command in a pod's worker, and return what it prints.

        Raises:
            ClusterProblem: it ends with another code than 0.
        """
        from kubernetes.stream import stream

        with self._asking(f"run a command in pod {pod}"):
            channel = stream(
                self._core.connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                container=contract.WORKER_CONTAINER,
                command=command,
                stdout=True,
                stderr=True,
                _preload_content=False,
            )
            channel.run_forever(timeout=600)
            output, errors = channel.read_stdout(), channel.read_stderr()
            code = channel.returncode
        if code != 0:
            raise ClusterProblem(f"pod {pod}: {' '.join(str(errors or output).split())}", EXIT_BAD_INPUT)
        return str(output)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turn what the client raises into a problem of the user's."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            raise _problem(error.status, error.body, what) from None
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            text = str(reason).rpartition(": ")[2] or str(reason)
            fix = "is the cluster up, and the context right?"
            raise ClusterProblem(f"{self._host} does not answer: {text}; {fix}", EXIT_NO_CLUSTER) from None


def parse(body: Body) -> TrainingJob:
    """A job from its body.

    Raises:
        ClusterProblem: this version does not know some of its fields.
    """
    try:
        return TrainingJob.from_dict(body)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        name = body["metadata"]["name"]
        fix = "install the version of trainyard that the cluster has, or use kubectl"
        raise ClusterProblem(f"job {name}: this version does not know its field {where}; {fix}") from None


def _problem(status: int, body: str | bytes | None, what: str) -> ClusterProblem:
    """What an answer of the API server means to a user."""
    try:
        message = str(json.loads(body or "")["message"])
    except (ValueError, KeyError, TypeError):
        message = ""
    if status == 404 and not message:
        fix = "install it: helm install trainyard charts/trainyard"
        return ClusterProblem(f"cannot {what}: the cluster has no TrainingJobs; {fix}", EXIT_NO_CLUSTER)
    if status == 404:
        return Missing(f"cannot {what}: {message}")
    if status == 401:
        return ClusterProblem(f"cannot {what}: the cluster does not know you; log in anew", EXIT_NO_CLUSTER)
    if status == 403:
        return ClusterProblem(f"cannot {what}: {message}; ask for that permission", EXIT_BAD_INPUT)
    if status == 409:
        fix = "delete it first, or change it with kubectl apply"
        return ClusterProblem(f"cannot {what}: {message}; {fix}", EXIT_BAD_INPUT)
    code = EXIT_BAD_INPUT if status in (400, 422) else EXIT_FAILED
    return ClusterProblem(f"cannot {what}: {' '.join(message.split()) or f'HTTP {status}'}", code)


def _place(pod: Body) -> tuple[bool, int]:
    labels = pod["metadata"]["labels"]
    return labels.get(contract.LABEL_ROLE) == contract.ROLE_SERVER, int(labels.get(contract.LABEL_INDEX, 0))


def _moment(event: Body) -> tuple[str, str]:
    """When an event was; times are whole seconds, and names of the operator's events go on in order."""
    return event.get("lastTimestamp") or event.get("eventTime") or "", event["metadata"]["name"]


def _context_named(contexts: list[Body], name: str) -> Body:
    for context in contexts:
        if context["name"] == name:
            return context
    known = ", ".join(context["name"] for context in contexts)
    raise ClusterProblem(f"--context: there is no context {name}; there are: {known}", EXIT_BAD_INPUT)


_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def _in_a_pod() -> bool:
    return (_ACCOUNT / "token").exists()


def _own_namespace() -> str:
    return (_ACCOUNT / "namespace").read_text("utf-8").strip()
