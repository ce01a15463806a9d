"""The versions of Kubernetes that the tests can run on."""

import re
from pathlib import Path

import pytest

from tests.cluster import ClusterError, versions
from tests.cluster.binaries import PACKAGES, GoToolbox, cache_key, link_flags
from tests.cluster.model import Toolbox
from tests.cluster.toolbox import PathToolbox
from tests.cluster.versions import DEFAULT, MODULES, VARIABLE, VERSIONS, Kubernetes, of_program, selected

EACH = pytest.mark.parametrize("kubernetes", VERSIONS.values(), ids=VERSIONS.keys())


def test_the_environment_selects_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert selected() is VERSIONS[DEFAULT]
    monkeypatch.setenv(VARIABLE, "1.34")
    assert selected() is VERSIONS["1.34"]
    assert GoToolbox().module == MODULES / "1.34"
    monkeypatch.setenv(VARIABLE, "1.2")
    with pytest.raises(ClusterError, match=r"TRAINYARD_TEST_KUBERNETES=1\.2: no such version; use one of 1\.37, 1\.34"):
        selected()


def test_every_version_has_a_module_and_every_module_is_a_version() -> None:
    assert {folder.name for folder in MODULES.iterdir()} == VERSIONS.keys()


@EACH
def test_a_module_pins_kubernetes_its_staging_modules_and_all_programs(kubernetes: Kubernetes) -> None:
    text = (kubernetes.module / "go.mod").read_text()
    [patch] = re.findall(rf"^\tk8s\.io/kubernetes v{re.escape(kubernetes.minor)}\.(\d+)", text, re.MULTILINE)
    staging = set(re.findall(r"^\tk8s\.io/\S+ => k8s\.io/\S+ (\S+)$", text, re.MULTILINE))
    assert staging == {f"v0{kubernetes.minor.removeprefix('1')}.{patch}"}
    [tools] = re.findall(r"^tool \(\n(.*?)^\)", text, re.MULTILINE | re.DOTALL)
    assert set(tools.split()) == set(PACKAGES.values())
    assert f"gitVersion=v{kubernetes.minor}.{patch}" in link_flags(text)


def test_gates_and_apis_become_arguments() -> None:
    kubernetes = Kubernetes("1.99", ("a/v1beta1", "b/v1alpha1"), {"One": True, "Two": False})
    assert kubernetes.gate_arguments() == ["--feature-gates=One=true,Two=false"]
    assert kubernetes.apiserver_arguments() == [
        "--runtime-config=a/v1beta1=true,b/v1alpha1=true",
        "--feature-gates=One=true,Two=false",
    ]
    assert Kubernetes("1.99").apiserver_arguments() == []


def test_programs_from_a_folder_get_the_arguments_of_their_own_version(tmp_path: Path) -> None:
    assert of_program("Kubernetes v1.37.0\n") is VERSIONS["1.37"]
    assert of_program("Kubernetes v1.30.1\n") == Kubernetes("1.30")
    program = tmp_path / "kube-apiserver"
    program.write_text("#!/bin/sh\necho Kubernetes v1.36.4\n")
    program.chmod(0o755)
    toolbox: Toolbox = PathToolbox(GoToolbox(VERSIONS["1.37"]), tmp_path)
    assert toolbox.kubernetes == Kubernetes("1.36")
    assert PathToolbox(GoToolbox(VERSIONS["1.34"])).kubernetes is VERSIONS["1.34"]


def test_programs_are_compiled_again_when_the_module_or_the_flags_change() -> None:
    assert len({cache_key("a", "b", ["c"]), cache_key("a", "b", ["d"]), cache_key("a", "c", ["b"])}) == 3
    assert len({GoToolbox(kubernetes).version for kubernetes in VERSIONS.values()}) == len(VERSIONS)


def test_the_chart_admits_every_version() -> None:
    chart = (versions.MODULES.parents[2] / "charts" / "trainyard" / "Chart.yaml").read_text()
    found = re.search(r"^kubeVersion: .*>= ?1\.(\d+)", chart, re.MULTILINE)
    assert found is not None
    assert min(int(minor.split(".")[1]) for minor in VERSIONS) >= int(found[1])
