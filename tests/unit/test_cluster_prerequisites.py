"""What a test cluster needs of the machine: named at once, before anything is compiled, and installed by .ci/run."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster import ClusterError, Profile, prerequisites
from tests.cluster.images import buildah
from tests.cluster.paths import REPOSITORY
from tests.cluster.versions import VERSIONS, Kubernetes


class Compiled:
    """A toolbox of programs that are compiled already, or not."""

    version = "1"
    kubernetes: Kubernetes = VERSIONS["1.34"]

    def __init__(self, *missing: str) -> None:
        self._missing = list(missing)

    def path(self, tool: str) -> Path:
        raise AssertionError("nothing is compiled before the machine has been checked")

    def prepare(self, tools: Sequence[str]) -> None:
        raise AssertionError("nothing is compiled before the machine has been checked")

    def missing(self, tools: Sequence[str]) -> list[str]:
        return self._missing


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with no program, no plugin and no root."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(prerequisites, "PLUGIN_FOLDERS", (tmp_path,))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def refusal(profile: Profile, toolbox: Compiled, folder: Path) -> list[str]:
    """The lines of the message."""
    with pytest.raises(ClusterError) as refused:
        prerequisites.check(profile, toolbox, ("kubelet",), folder)
    return str(refused.value).splitlines()


def test_all_that_is_missing_is_one_message_with_one_command_for_all_packages(bare: None, tmp_path: Path) -> None:
    first, *needs = refusal(Profile.NODE, Compiled("kubelet"), tmp_path)
    assert first == "a cluster (node) cannot run on this machine. It needs:"
    packages, go, root = needs
    programs, _, command = packages.partition(": ")
    assert {"  - containerd", "runc", "iptables", "buildah", "mmdebstrap", "busybox"} <= set(programs.split(", "))
    assert "CNI plugins (bridge, host-local, loopback, portmap)" in programs
    assert command == (
        "apt-get install --no-install-recommends buildah busybox-static containerd containernetworking-plugins "
        "containers-storage iproute2 iptables mmdebstrap runc util-linux"
    )
    assert "Go is not installed" in go
    assert root == f"  - {prerequisites.ROOT}"


def test_a_control_plane_needs_go_alone_and_not_even_that_once_its_programs_are_compiled(
    bare: None, tmp_path: Path
) -> None:
    [_, go] = refusal(Profile.CONTROL_PLANE, Compiled("etcd"), tmp_path)
    assert "Go is not installed" in go
    prerequisites.check(Profile.CONTROL_PLANE, Compiled(), ("etcd",), tmp_path)


def test_a_kernel_feature_that_is_missing_is_named_with_what_its_probe_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program, **_: f"/bin/{program}")
    monkeypatch.setattr(prerequisites, "plugin_folder", lambda: tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(prerequisites, "_memory_cgroups", lambda: True)
    monkeypatch.setattr(prerequisites, "_IN_NAMESPACE", "env")
    probes = {"bridges": "true", "overlayfs in {folder}": "echo no such device >&2; false"}
    monkeypatch.setattr(prerequisites, "_KERNEL", probes)
    folder = tmp_path / "not" / "there" / "yet"
    assert refusal(Profile.NODE, Compiled(), folder)[1:] == [
        f"  - kernel: overlayfs in {tmp_path}: no such device",
    ]
    assert list(tmp_path.iterdir()) == [], "a probe leaves nothing behind"


def test_ci_installs_what_the_tool_asks_for() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text()
    [listed] = re.findall(r"^packages=\(\n(.*?)^\)", script, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^(.*?)#(.*)$", listed, re.MULTILINE)
    groups = {purpose.strip(): set(packages.split()) for packages, purpose in rows}
    assert groups["a node"] == {*prerequisites.NODE_PACKAGES.values(), prerequisites.PLUGIN_PACKAGE}
    assert groups["images without a container engine"] == set(prerequisites.IMAGE_PACKAGES.values())


def test_the_documentation_lists_the_same_packages() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    listed = re.search(r"apt-get install --no-install-recommends ((?:[a-z0-9-]+[ \\\n]+)+)", text)
    assert listed is not None
    packages = set(listed[1].replace("\\", " ").split())
    node = {*prerequisites.NODE_PACKAGES.values(), *prerequisites.IMAGE_PACKAGES.values(), prerequisites.PLUGIN_PACKAGE}
    assert packages == {*node, "prometheus", "prometheus-alertmanager"}


def test_the_programs_that_images_are_built_with_are_checked() -> None:
    required = set(re.findall(r'require\("([\w-]+)"', Path(buildah.__file__).read_text()))
    assert required == set(prerequisites.IMAGE_PACKAGES)
