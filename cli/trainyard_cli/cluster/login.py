"""Login to a cluster as kubectl does it: by kubeconfig, or inside a pod by its service account."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainyard_cli.cluster.errors import ClusterError
from trainyard_cli.exit_codes import EXIT_BAD_INPUT, EXIT_NO_CLUSTER

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def login(kubeconfig: Path | None, context: str | None) -> tuple["ApiClient", str]:
    """Return the client of a context (the current one by default), and the namespace of that context.

    Raises:
        ClusterError: the kubeconfig or the context does not exist or is not valid, or credentials are missing.
    """
    from kubernetes import config
    from kubernetes.config import ConfigException

    # urllib3 logs retries and full connection pools, which the commands report themselves.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    if kubeconfig is not None and not kubeconfig.exists():
        raise ClusterError(f"--kubeconfig: {kubeconfig} does not exist; correct the path", EXIT_NO_CLUSTER)
    paths = str(kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config")
    merged = _read_kubeconfig(paths)
    if merged is None:
        # Without a kubeconfig a pod uses its service account.
        if context is None and (_SERVICE_ACCOUNT / "token").exists():
            return _login_in_pod()
        raise ClusterError(
            "no cluster is configured: there is no kubeconfig; set KUBECONFIG, or pass --kubeconfig", EXIT_NO_CLUSTER
        )
    selected = _select_context(merged, context)
    try:
        with _credential_errors():
            api = config.new_client_from_config(paths, selected["name"])
    # The package checks little of the file's content, so errors of any kind may come from it.
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"context {selected['name']} of the kubeconfig: {_one_line(error)}; correct it, or pass --context"
        raise ClusterError(problem, EXIT_NO_CLUSTER) from None
    return api, selected["context"].get("namespace") or "default"


def _login_in_pod() -> tuple["ApiClient", str]:
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.config import ConfigException, load_incluster_config

    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
        return ApiClient(configuration), (_SERVICE_ACCOUNT / "namespace").read_text("utf-8").strip()
    except (ConfigException, OSError) as error:
        fix = "set KUBECONFIG, or pass --kubeconfig"
        problem = f"the service account of this pod cannot be used: {_one_line(error)}; {fix}"
        raise ClusterError(problem, EXIT_NO_CLUSTER) from None


def _read_kubeconfig(paths: str) -> dict[str, Any] | None:
    """Return the kubeconfig merged from a list of files as in KUBECONFIG, or None if no such file exists.

    Raises:
        ClusterError: a file is not a kubeconfig.
    """
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigMerger

    files = [Path(part).expanduser() for part in paths.split(os.pathsep) if part]
    files = [file for file in files if file.exists()]
    for file in files:
        _check_kubeconfig(file)
    if not files:
        return None
    try:
        merged = KubeConfigMerger(paths).config
        return {**merged.value, "contexts": [entry.value for entry in merged.value.get("contexts") or ()]}
    except (ConfigException, ValueError, TypeError, AttributeError) as error:
        problem = f"{paths} is not a valid kubeconfig: {_one_line(error)}; correct it, or the path"
        raise ClusterError(problem, EXIT_NO_CLUSTER) from None


def _check_kubeconfig(file: Path) -> None:
    """Check the shape of one kubeconfig: a mapping whose clusters, users and contexts are lists of named entries.

    Raises:
        ClusterError: it cannot be read, or has another shape.
    """
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        problem = _shape_problem(content)
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    except yaml.YAMLError as error:
        problem = f"it is not YAML: {_one_line(error)}"
    except RecursionError:
        problem = "it is nested too deeply"
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
    if problem:
        raise ClusterError(f"{file} is not a valid kubeconfig: {problem}; correct it, or the path", EXIT_NO_CLUSTER)


def _shape_problem(content: Any) -> str:
    if not isinstance(content, dict):
        return "it must be a mapping with clusters, users and contexts"
    for section in ("clusters", "users", "contexts"):
        entries = content.get(section) or []
        if not isinstance(entries, list):
            return f"{section}: must be a list"
        kind = section.removesuffix("s")
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                return f"{section}[{index}]: must be a mapping with a name"
            if not isinstance(entry.get(kind) or {}, dict):
                return f"{section}[{index}].{kind}: must be a mapping"
    return ""


def _select_context(kubeconfig: dict[str, Any], name: str | None) -> dict[str, Any]:
    selected = name or kubeconfig.get("current-context")
    contexts: list[dict[str, Any]] = kubeconfig["contexts"]
    available = ", ".join(context["name"] for context in contexts) or "none"
    if not selected:
        raise ClusterError(f"no context is selected; pass --context, one of: {available}", EXIT_NO_CLUSTER)
    for context in contexts:
        if context["name"] == selected:
            return context
    if name:
        raise ClusterError(f"--context: there is no context {name}; choose one of: {available}", EXIT_BAD_INPUT)
    problem = f"the current context {selected} does not exist; pass --context, one of: {available}"
    raise ClusterError(problem, EXIT_NO_CLUSTER)


@contextmanager
def _credential_errors() -> Iterator[None]:
    """Raise what the package only logs: that a credential plugin (users[].user.exec) failed."""
    from kubernetes.config import ConfigException

    class LastMessage(logging.Handler):
        message: str | None = None

        def emit(self, record: logging.LogRecord) -> None:
            self.message = record.getMessage()

    handler, root = LastMessage(logging.ERROR), logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
    if handler.message is not None:
        raise ConfigException(f"no credentials: {handler.message}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
