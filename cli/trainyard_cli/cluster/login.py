"""Logging in to a cluster as kubectl does: by kubeconfig, or inside a pod by its service account."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainyard_cli.cluster.problems import EXIT_NO_CLUSTER, ClusterProblem
from trainyard_cli.ending import EXIT_BAD_INPUT

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def login(kubeconfig: Path | None, context: str | None) -> tuple["ApiClient", str]:
    """The client of a context, the current one by default, and the namespace of that context.

    Raises:
        ClusterProblem: there is no such kubeconfig or context, or its credentials are not there.
    """
    from kubernetes import config
    from kubernetes.config import ConfigException

    # What is retried, and that the pool of connections is full, is no news to a user.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    if kubeconfig is not None and not kubeconfig.exists():
        raise ClusterProblem(f"--kubeconfig: there is no file {kubeconfig}; correct the path", EXIT_NO_CLUSTER)
    file = str(kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config")
    found = _read(file)
    if found is None:
        if context is None and (_ACCOUNT / "token").exists():
            return _login_in_pod()
        raise ClusterProblem(
            "no cluster to ask: there is no kubeconfig; set KUBECONFIG, or pass --kubeconfig", EXIT_NO_CLUSTER
        )
    chosen = _choose(found, context)
    try:
        with _errors_of_helpers():
            api = config.new_client_from_config(file, chosen["name"])
    # The package checks little of what stands in the file.
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"context {chosen['name']} of the kubeconfig: {_line(error)}; mend it, or pass --context"
        raise ClusterProblem(problem, EXIT_NO_CLUSTER) from None
    return api, chosen["context"].get("namespace") or "default"


def _login_in_pod() -> tuple["ApiClient", str]:
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.config import ConfigException, load_incluster_config

    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
        return ApiClient(configuration), (_ACCOUNT / "namespace").read_text("utf-8").strip()
    except (ConfigException, OSError) as error:
        problem = f"the service account of this pod is no use: {_line(error)}; set KUBECONFIG, or pass --kubeconfig"
        raise ClusterProblem(problem, EXIT_NO_CLUSTER) from None


def _read(file: str) -> dict[str, Any] | None:
    """The kubeconfig, merged from all files that are named, as in KUBECONFIG; None if none of them is there."""
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigMerger

    try:
        merged = KubeConfigMerger(file).config
        return None if merged is None else {**merged.value, "contexts": [one.value for one in merged.value["contexts"]]}
    except (ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ClusterProblem(f"{file} is no kubeconfig: {_line(error)}; correct the path", EXIT_NO_CLUSTER) from None


def _choose(kubeconfig: dict[str, Any], name: str | None) -> dict[str, Any]:
    wanted = name or kubeconfig.get("current-context")
    contexts: list[dict[str, Any]] = kubeconfig["contexts"]
    known = ", ".join(context["name"] for context in contexts) or "none"
    if not wanted:
        raise ClusterProblem(f"no context is chosen; pass --context: there are: {known}", EXIT_NO_CLUSTER)
    for context in contexts:
        if context["name"] == wanted:
            return context
    if name:
        raise ClusterProblem(f"--context: there is no context {name}; there are: {known}", EXIT_BAD_INPUT)
    problem = f"there is no context {wanted}, which is the current one; pass --context: there are: {known}"
    raise ClusterProblem(problem, EXIT_NO_CLUSTER)


@contextmanager
def _errors_of_helpers() -> Iterator[None]:
    """Raise what the package merely logs: that a helper for credentials (users[].user.exec) has failed."""
    from kubernetes.config import ConfigException

    class Keep(logging.Handler):
        said: str | None = None

        def emit(self, record: logging.LogRecord) -> None:
            self.said = record.getMessage()

    keep, root = Keep(logging.ERROR), logging.getLogger()
    root.addHandler(keep)
    try:
        yield
    finally:
        root.removeHandler(keep)
    if keep.said is not None:
        raise ConfigException(f"no credentials: {keep.said}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
