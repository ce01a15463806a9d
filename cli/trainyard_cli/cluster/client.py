"""The cluster as the commands see it: the kubernetes client, and one clear line for whatever goes wrong.

The client is imported when a cluster is first asked for: `trainyard run` and `plan` need none, and start without it.
"""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard_cli.cluster.login import login
from trainyard_cli.cluster.problems import EXIT_NO_CLUSTER, ClusterProblem, Missing, Unavailable, problem_of
from trainyard_cli.ending import EXIT_BAD_INPUT

Body = dict[str, Any]
"""An object as the API server has it."""

_WHERE = {"group": constants.GROUP, "version": constants.VERSION, "plural": constants.PLURAL}
_PATIENCE = (5, 60)
"""Seconds for a connection, and from one byte of an answer to the next."""
_PATIENCE_WITH_A_LOG = (5, 86_400)
"""The same for a log that is followed: a pod may have nothing to say for long."""


class Cluster:
    """One namespace of a cluster, or all."""

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None, namespace: str | None = None):
        """Log in as kubectl does.

        Raises:
            ClusterProblem: see `login`.
        """
        from kubernetes import client

        api, inside = login(kubeconfig, context)
        self.namespace = namespace or inside
        self._host = api.configuration.host
        self._api = api
        # Its types say what it returns if it parses the answer; where it need not, that is faster.
        self._objects: Any = client.CustomObjectsApi(api)

    @cached_property
    def _core(self) -> Any:
        from kubernetes.client import CoreV1Api  # a second of its own, which commands about jobs alone need not spend

        return CoreV1Api(self._api)

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
        with self._asking(f"change job {name}"):
            found: Body = self._objects.patch_namespaced_custom_object(
                name=name, namespace=self.namespace, body={"spec": spec}, **_WHERE, _request_timeout=_PATIENCE
            )
            return found

    def scale(self, name: str, replicas: int) -> None:
        """Set the number of workers, as `kubectl scale` does."""
        with self._asking(f"scale job {name}"):
            self._objects.patch_namespaced_custom_object_scale(
                name=name,
                namespace=self.namespace,
                body={"spec": {"replicas": replicas}},
                **_WHERE,
                _request_timeout=_PATIENCE,
            )

    def delete(self, name: str, uid: str) -> None:
        """Delete this very job, and none that has taken its name since; what it owns goes with it."""
        with self._asking(f"delete job {name}"):
            self._objects.delete_namespaced_custom_object(
                name=name,
                namespace=self.namespace,
                body={"preconditions": {"uid": uid}},
                **_WHERE,
                _request_timeout=_PATIENCE,
            )

    # --- what a job has ------------------------------------------------------------------------------------------

    def pods(self, name: str) -> list[Body]:
        """The pods of a job's group, workers first, without placeholders."""
        selector = f"{constants.LABEL_JOB}={name},{constants.LABEL_ROLE}!={constants.ROLE_PLACEHOLDER}"
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
                container=constants.WORKER_CONTAINER,
                follow=follow,
                _preload_content=False,
                _request_timeout=_PATIENCE_WITH_A_LOG if follow else _PATIENCE,
                **({} if tail is None else {"tail_lines": tail}),
            )
            rest = b""
            for chunk in answer.stream():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
            if rest:
                yield rest.decode("utf-8", "replace")

    def metrics(self, pod: Body) -> str:
        """The metrics page of a pod that has one, through the API server."""
        about = pod["metadata"]["annotations"]
        name = f"{pod['metadata']['name']}:{about[constants.ANNOTATION_PORT]}"
        path = about[constants.ANNOTATION_PATH].lstrip("/")
        with self._asking(f"read the metrics of pod {pod['metadata']['name']}", passed_on=True):
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
                container=constants.WORKER_CONTAINER,
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
    def _asking(self, what: str, *, passed_on: bool = False) -> Iterator[None]:
        """Turn what the client raises into a problem of the user's."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError, SSLError

        try:
            yield
        except ApiException as error:
            status, body = error.status, error.body
            if not status:  # of a WebSocket the package passes on no answer, but what it has raised before
                status = getattr(error.__context__, "status_code", 0)
                body = getattr(error.__context__, "resp_body", None)
            if not status:
                raise Unavailable(f"cannot {what}: {' '.join(str(error.reason).split())}") from None
            raise problem_of(status, body, what, passed_on=passed_on) from None
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            whole = " ".join(str(reason).split())
            # Of a connection what follows the address is enough; what TLS says is short, and has colons of its own.
            text = whole if isinstance(reason, SSLError) else whole.rpartition(": ")[2] or whole
            fix = "is the cluster up, and the context right?"
            raise Unavailable(f"{self._host} does not answer: {text}; {fix}", EXIT_NO_CLUSTER) from None


def parse(body: Body) -> TrainingJob:
    """A job from its body. Fields that this version does not know, since the cluster has a later one, are left out.

    Raises:
        ClusterProblem: a field that it knows has a value that it does not.
    """
    try:
        return TrainingJob.model_validate(body, extra="ignore")
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        name = body["metadata"]["name"]
        fix = "install the version of trainyard that the cluster has, or use kubectl"
        raise ClusterProblem(f"job {name}: this version does not understand its field {where}; {fix}") from None


def _place(pod: Body) -> tuple[bool, int]:
    labels = pod["metadata"]["labels"]
    return labels.get(constants.LABEL_ROLE) == constants.ROLE_SERVER, int(labels.get(constants.LABEL_INDEX, 0))


def _moment(event: Body) -> tuple[str, str]:
    """When an event was; times are whole seconds, and names of the operator's events go on in order."""
    return event.get("lastTimestamp") or event.get("eventTime") or "", event["metadata"]["name"]
