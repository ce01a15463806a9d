"""Requests to a cluster through the kubernetes client, and one-line errors.

The kubernetes package is imported with the first login: `trainyard run` and `trainyard plan` start without it.
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
from trainyard_cli.cluster.errors import ClusterError, NotFoundError, UnavailableError, error_from_response
from trainyard_cli.cluster.login import login
from trainyard_cli.exit_codes import EXIT_BAD_INPUT, EXIT_NO_CLUSTER

Body = dict[str, Any]
"""An object as the API server returns it."""

_RESOURCE = {"group": constants.GROUP, "version": constants.VERSION, "plural": constants.PLURAL}
_TIMEOUT = (5, 60)
"""Seconds to connect, and between two bytes of a response."""
_FOLLOW_TIMEOUT = (5, 86_400)
"""Timeout for a log that is followed: a pod may log nothing for a day."""


class Cluster:
    """Access to the TrainingJobs of one namespace, or of all."""

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None, namespace: str | None = None):
        """Log in with a context of the kubeconfig, or with the service account of the pod.

        Raises:
            ClusterError: see `login`.
        """
        from kubernetes import client

        api, inside = login(kubeconfig, context)
        self.namespace = namespace or inside
        self._host = api.configuration.host
        self._api = api
        # Annotated as Any: the package declares parsed results, which most requests here do not ask for.
        self._objects: Any = client.CustomObjectsApi(api)

    @cached_property
    def _core(self) -> Any:
        from kubernetes.client import CoreV1Api  # importing it takes a second, which commands on jobs alone save

        return CoreV1Api(self._api)

    # --- jobs ----------------------------------------------------------------------------------------------------

    def list_bodies(self, *, all_namespaces: bool = False) -> list[Body]:
        """Return all jobs as stored, sorted by namespace and name."""
        with self._request("list jobs"):
            if all_namespaces:
                found = self._objects.list_cluster_custom_object(**_RESOURCE, _request_timeout=_TIMEOUT)
            else:
                found = self._objects.list_namespaced_custom_object(
                    namespace=self.namespace, **_RESOURCE, _request_timeout=_TIMEOUT
                )
        items: list[Body] = found["items"]
        return sorted(items, key=lambda body: (body["metadata"]["namespace"], body["metadata"]["name"]))

    def get_body(self, name: str) -> Body:
        """Return one job as stored.

        Raises:
            NotFoundError: no job has that name; the message suggests similar names.
        """
        try:
            with self._request(f"read job {name}"):
                found: Body = self._objects.get_namespaced_custom_object(
                    name=name, namespace=self.namespace, **_RESOURCE, _request_timeout=_TIMEOUT
                )
                return found
        except NotFoundError:
            names = [body["metadata"]["name"] for body in self.list_bodies()]
            similar = difflib.get_close_matches(name, names, 3)
            hint = f"; did you mean {' or '.join(similar)}?" if similar else "; see: trainyard list"
            raise NotFoundError(f"there is no TrainingJob {name} in namespace {self.namespace}{hint}") from None

    def get_job(self, name: str) -> TrainingJob:
        """Return one job, parsed.

        Raises:
            ClusterError: see `get_body` and `parse_job`.
        """
        return parse_job(self.get_body(name))

    def create_job(self, body: Body) -> Body:
        """Create a job, and return it as stored.

        Raises:
            ClusterError: the API server refuses it (its message is kept), or the name is taken.
        """
        with self._request(f"create job {body['metadata'].get('name')}"):
            found: Body = self._objects.create_namespaced_custom_object(
                namespace=self.namespace, body=body, **_RESOURCE, field_validation="Strict", _request_timeout=_TIMEOUT
            )
            return found

    def patch_spec(self, name: str, spec: Body) -> Body:
        """Change fields of a job's spec, and return the job as stored."""
        with self._request(f"change job {name}"):
            found: Body = self._objects.patch_namespaced_custom_object(
                name=name, namespace=self.namespace, body={"spec": spec}, **_RESOURCE, _request_timeout=_TIMEOUT
            )
            return found

    def scale_job(self, name: str, replicas: int) -> None:
        """Set the number of workers through the scale subresource."""
        with self._request(f"scale job {name}"):
            self._objects.patch_namespaced_custom_object_scale(
                name=name,
                namespace=self.namespace,
                body={"spec": {"replicas": replicas}},
                **_RESOURCE,
                _request_timeout=_TIMEOUT,
            )

    def delete_job(self, name: str, uid: str) -> None:
        """Delete the job with this UID and all that it owns; a newer job of the same name is left alone."""
        with self._request(f"delete job {name}"):
            self._objects.delete_namespaced_custom_object(
                name=name,
                namespace=self.namespace,
                body={"preconditions": {"uid": uid}},
                **_RESOURCE,
                _request_timeout=_TIMEOUT,
            )

    # --- pods and events ------------------------------------------------------------------------------------------

    def list_pods(self, name: str) -> list[Body]:
        """Return the pods of a job: workers first, then the parameter server; no placeholder pods."""
        selector = f"{constants.LABEL_JOB}={name},{constants.LABEL_ROLE}!={constants.ROLE_PLACEHOLDER}"
        with self._request(f"list the pods of job {name}"):
            found = self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _preload_content=False, _request_timeout=_TIMEOUT
            )
            items: list[Body] = json.loads(found.data)["items"]
        return sorted(items, key=_pod_order)

    def delete_pod(self, pod: Body) -> None:
        """Delete the pod with this UID; a newer pod of the same name is left alone."""
        metadata = pod["metadata"]
        body = {"preconditions": {"uid": metadata["uid"]}}
        with self._request(f"delete pod {metadata['name']}"):
            self._core.delete_namespaced_pod(
                metadata["name"], self.namespace, body=body, _preload_content=False, _request_timeout=_TIMEOUT
            )

    def list_events(self, uid: str) -> list[Body]:
        """Return the events of an object, oldest first."""
        with self._request("list events"):
            found = self._core.list_namespaced_event(
                self.namespace,
                field_selector=f"involvedObject.uid={uid}",
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            )
            items: list[Body] = json.loads(found.data)["items"]
        return sorted(items, key=_event_order)

    def stream_log(self, pod: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of a worker container's log."""
        with self._request(f"read the log of pod {pod}"):
            answer = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=constants.WORKER_CONTAINER,
                follow=follow,
                _preload_content=False,
                _request_timeout=_FOLLOW_TIMEOUT if follow else _TIMEOUT,
                **({} if tail is None else {"tail_lines": tail}),
            )
            rest = b""
            for chunk in answer.stream():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
            if rest:
                yield rest.decode("utf-8", "replace")

    def read_metrics(self, pod: Body) -> str:
        """Return the metrics page of a pod that has one, through the API server's proxy."""
        annotations = pod["metadata"]["annotations"]
        name = f"{pod['metadata']['name']}:{annotations[constants.ANNOTATION_PORT]}"
        path = annotations[constants.ANNOTATION_PATH].lstrip("/")
        with self._request(f"read the metrics of pod {pod['metadata']['name']}", proxied=True):
            answer = self._core.connect_get_namespaced_pod_proxy_with_path(
                name, self.namespace, path, _preload_content=False, _request_timeout=_TIMEOUT
            )
            return str(answer.data.decode("utf-8", "replace"))

    def execute(self, pod: str, command: list[str]) -> str:
        """Run a command in a pod's worker container, and return its standard output.

        Raises:
            ClusterError: its exit code is not 0.
        """
        from kubernetes.stream import stream

        with self._request(f"run a command in pod {pod}"):
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
            raise ClusterError(f"pod {pod}: {' '.join(str(errors or output).split())}", EXIT_BAD_INPUT)
        return str(output)

    @contextmanager
    def _request(self, action: str, *, proxied: bool = False) -> Iterator[None]:
        """Convert exceptions of the client into a `ClusterError`."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError, SSLError

        try:
            yield
        except ApiException as error:
            status, body = error.status, error.body
            if not status:  # for a refused WebSocket the response is in the exception that caused this one
                status = getattr(error.__context__, "status_code", 0)
                body = getattr(error.__context__, "resp_body", None)
            if not status:
                raise UnavailableError(f"cannot {action}: {' '.join(str(error.reason).split())}") from None
            raise error_from_response(status, body, action, proxied=proxied) from None
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            message = " ".join(str(reason).split())
            # A connection error repeats the address before its last colon; a TLS error is short and kept as it is.
            text = message if isinstance(reason, SSLError) else message.rpartition(": ")[2] or message
            fix = "is the cluster up, and the context right?"
            raise UnavailableError(f"{self._host} does not respond: {text}; {fix}", EXIT_NO_CLUSTER) from None


def parse_job(body: Body) -> TrainingJob:
    """Return a job from its body; fields that only a newer version of the CRD has are left out.

    Raises:
        ClusterError: a field has a value that this version does not know.
    """
    try:
        return TrainingJob.model_validate(body, extra="ignore")
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        name = body["metadata"]["name"]
        fix = "install the version that the cluster runs, or use kubectl"
        raise ClusterError(
            f"job {name}: this version of trainyard does not support the value of its field {field}; {fix}"
        ) from None


def _pod_order(pod: Body) -> tuple[bool, int]:
    """Return the sort key of a pod: workers by index, then the parameter server."""
    labels = pod["metadata"]["labels"]
    return labels.get(constants.LABEL_ROLE) == constants.ROLE_SERVER, int(labels.get(constants.LABEL_INDEX, 0))


def _event_order(event: Body) -> tuple[str, str]:
    """Return the sort key of an event: its time in whole seconds, then its name, which the operator numbers."""
    return event.get("lastTimestamp") or event.get("eventTime") or "", event["metadata"]["name"]
