"""The programs of Kubernetes, built from the Go modules that a version in `versions.py` pins."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.cluster.model import ClusterError
from tests.cluster.paths import locked, user_folder
from tests.cluster.progress import step
from tests.cluster.versions import Kubernetes, selected

PACKAGES = {
    "coredns": "github.com/coredns/coredns",
    "etcd": "go.etcd.io/etcd/server/v3",
    "helm": "helm.sh/helm/v3/cmd/helm",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
}
"""The packages of the programs: the `tool` lines of each go.mod."""
COMPILED_NAME = {"etcd": "server"}
"""What `go build` calls a program if not by its tool's name."""


def link_flags(go_mod: str) -> str:
    """Linker flags that tell the programs their version, which Go modules alone do not."""
    match = re.search(r"^\tk8s\.io/kubernetes (v(\d+)\.(\d+)\S*)", go_mod, re.MULTILINE)
    if match is None:
        raise ClusterError("the go.mod of the test cluster does not require k8s.io/kubernetes")
    stamps = {
        "gitVersion": match[1],
        "gitMajor": match[2],
        "gitMinor": match[3],
        "gitTreeState": "clean",
    }
    return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{k}={v}" for k, v in stamps.items())])


def cache_key(go_mod: str, go_sum: str, flags: Sequence[str]) -> str:
    """Names the folder of the binaries: another one as soon as anything that shapes them changes."""
    return hashlib.sha256("\0".join([go_mod, go_sum, *flags]).encode()).hexdigest()[:16]


@dataclass
class GoToolbox:
    """Builds each program once and keeps it in the user's cache."""

    kubernetes: Kubernetes = field(default_factory=selected)
    cache: Path = field(default_factory=lambda: user_folder("CACHE") / "bin")

    @property
    def module(self) -> Path:
        """The folder of the Go module that is built."""
        return self.kubernetes.module

    @cached_property
    def _flags(self) -> list[str]:
        return ["-trimpath", "-ldflags", link_flags((self.module / "go.mod").read_text())]

    @cached_property
    def folder(self) -> Path:
        """Where the programs of this version are."""
        go_mod, go_sum = ((self.module / name).read_text() for name in ("go.mod", "go.sum"))
        return self.cache / cache_key(go_mod, go_sum, [*self._flags, os.environ.get("GOFLAGS", "")])

    @property
    def version(self) -> str:
        """The cache key."""
        return self.folder.name

    def path(self, tool: str) -> Path:
        """The program, built if it is not there yet."""
        self.prepare([tool])
        return self.folder / tool

    def prepare(self, tools: Sequence[str]) -> None:
        """Build those that are not there yet, together: most of their code is shared."""
        if not self.missing(tools):
            return
        with locked(self.cache / "lock"):
            if missing := self.missing(tools):
                with step(f"compiling {', '.join(missing)} (minutes the first time)", slow=True):
                    self._build(missing)

    def purge(self) -> None:
        """Remove every version."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def missing(self, tools: Sequence[str]) -> list[str]:
        """Return those that are not built yet."""
        return [tool for tool in tools if not (self.folder / tool).exists()]

    def _build(self, tools: Sequence[str]) -> None:
        go = find_go(self.module)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="build-") as scratch:
            packages = [PACKAGES[tool] for tool in tools]
            command = [go, "build", *self._flags, "-o", f"{scratch}/", *packages]
            environment = {**os.environ, "CGO_ENABLED": "0"}
            done = subprocess.run(
                command, cwd=self.module, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                end = "\n".join(done.stderr.strip().splitlines()[-15:])
                raise ClusterError(f"compiling {', '.join(tools)} failed:\n{end}")
            for tool in tools:  # whole or not at all: a rename
                (Path(scratch) / COMPILED_NAME.get(tool, tool)).rename(self.folder / tool)


def find_go(module: Path) -> str:
    """The go command, new enough for the module's go.mod."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise ClusterError(
            "Go is not installed: install it from https://go.dev/dl (or point TRAINYARD_TEST_KUBECONFIG "
            "at a cluster of your own)"
        )
    # Says which toolchain go.mod gets, and downloads that one where GOTOOLCHAIN allows it.
    done = subprocess.run([go, "version"], cwd=module, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(
            f"{go} is too old for {module / 'go.mod'}: {done.stderr.strip()}; install a newer Go or set "
            "GOTOOLCHAIN=auto"
        )
    return go
