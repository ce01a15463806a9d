"""Login: cluster and namespace of a context, and one line for a kubeconfig that cannot be used."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainyard_cli.cluster.errors import ClusterError
from trainyard_cli.cluster.login import login

HELPER = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/none/helper", "interactiveMode": "Never"}


def kubeconfig(**changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "here", "cluster": {"server": "https://here:6443"}},
            {"name": "there", "cluster": {"server": "https://there:6443"}},
            {"name": "untrusted", "cluster": {"server": "https://here", "certificate-authority": "/none/ca.crt"}},
        ],
        "users": [{"name": "me", "user": {"token": "secret"}}, {"name": "helped", "user": {"exec": HELPER}}],
        "contexts": [
            {"name": "one", "context": {"cluster": "here", "user": "me", "namespace": "team"}},
            {"name": "two", "context": {"cluster": "there", "user": "me"}},
            {"name": "helped", "context": {"cluster": "here", "user": "helped"}},
            {"name": "untrusted", "context": {"cluster": "untrusted", "user": "me"}},
        ],
        "current-context": "one",
        **changes,
    }


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("trainyard_cli.cluster.login._SERVICE_ACCOUNT", tmp_path / "not in a pod")
    return tmp_path / "kubeconfig"


@pytest.mark.parametrize(
    ("changes", "context", "host", "namespace"),
    [
        ({}, None, "https://here:6443", "team"),
        ({}, "two", "https://there:6443", "default"),
        ({"current-context": ""}, "one", "https://here:6443", "team"),
        ({"current-context": "gone"}, "two", "https://there:6443", "default"),
    ],
)
def test_the_context_says_which_cluster_and_namespace(
    file: Path, changes: dict[str, Any], context: str | None, host: str, namespace: str
) -> None:
    config = {key: value for key, value in kubeconfig(**changes).items() if value}
    file.write_text(yaml.safe_dump(config))
    api, inside = login(file, context)
    assert (api.configuration.host, inside) == (host, namespace)


@pytest.mark.parametrize(
    ("content", "context", "code", "words"),
    [
        (None, None, 3, "--kubeconfig: "),
        (b"", None, 3, "is not a valid kubeconfig: it must be a mapping with clusters, users and contexts; correct it"),
        (b"just words", None, 3, "is not a valid kubeconfig: it must be a mapping with clusters, users and contexts"),
        (b"{{", None, 3, "is not a valid kubeconfig: it is not YAML: "),
        (b"[" * 5000, None, 3, "is not a valid kubeconfig: it is nested too deeply"),
        (b"[1]", None, 3, "is not a valid kubeconfig: it must be a mapping"),
        (b"clusters: 7", None, 3, "is not a valid kubeconfig: clusters: must be a list"),
        (b"users: [here]", None, 3, "is not a valid kubeconfig: users[0]: must be a mapping with a name"),
        (b"contexts: [{name: a, context: b}]", None, 3, "is not a valid kubeconfig: contexts[0].context: must be a"),
        (b"\xff\xfe", None, 3, "is not a valid kubeconfig: it is not UTF-8 text"),
        (kubeconfig(**{"current-context": ""}), None, 3, "no context is selected; pass --context, one of: one, two"),
        (
            kubeconfig(**{"current-context": "gone"}),
            None,
            3,
            "the current context gone does not exist; pass --context",
        ),
        (kubeconfig(), "gone", 2, "--context: there is no context gone; choose one of: one, two, helped, untrusted"),
        (kubeconfig(), "helped", 3, "context helped of the kubeconfig: no credentials: "),
        (kubeconfig(), "untrusted", 3, "context untrusted of the kubeconfig: File does not exist: /none/ca.crt"),
        (kubeconfig(clusters=[]), None, 3, "context one of the kubeconfig: "),
        (kubeconfig(contexts=[{"name": "one"}]), None, 3, "context one of the kubeconfig: "),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_one_line(
    file: Path, content: Any, context: str | None, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    with pytest.raises(ClusterError) as caught:
        login(file, context)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == code
    assert capfd.readouterr() == ("", ""), "the package itself prints nothing"


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a service account, as a pod has it; and no kubeconfig."""
    for name, content in (("token", "secret"), ("ca.crt", "certificate"), ("namespace", "team\n")):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("trainyard_cli.cluster.login._SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    return tmp_path


def test_inside_a_pod_its_service_account_logs_in(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, namespace = login(None, None)
    assert (api.configuration.host, namespace) == ("https://10.96.0.1:443", "team")
    with pytest.raises(ClusterError, match="there is no kubeconfig"):
        login(None, "one")


@pytest.mark.parametrize("lost", ["ca.crt", "namespace"])
def test_a_service_account_that_cannot_be_used_is_one_line(account: Path, lost: str) -> None:
    (account / lost).unlink()
    with pytest.raises(ClusterError, match="the service account of this pod cannot be used: ") as caught:
        login(None, None)
    assert caught.value.code == 3
