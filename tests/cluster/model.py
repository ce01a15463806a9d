"""What every provider hands out, and the contract it fulfils."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tests.cluster.versions import Kubernetes


class ClusterError(Exception):
    """Something a person can put right; the message says how."""


class Profile(StrEnum):
    """How much of a cluster is wanted."""

    CONTROL_PLANE = "control-plane"
    """etcd and kube-apiserver: objects are stored and validated, nothing runs."""
    NODE = "node"
    """A whole cluster with one node that runs pods."""


@dataclass(frozen=True)
class Request:
    """Which cluster a caller asks for."""

    profile: Profile
    name: str


class Toolbox(Protocol):
    """Where programs such as kubectl come from."""

    def path(self, tool: str) -> Path:
        """The program, built or looked up on first use; ClusterError if there is none."""

    def missing(self, tools: Sequence[str]) -> list[str]:
        """Return those of the programs that `prepare` would have to build."""

    def prepare(self, tools: Sequence[str]) -> None:
        """Make several programs available at once, which is faster than one after another."""

    @property
    def kubernetes(self) -> Kubernetes:
        """The version of Kubernetes that its daemons are."""

    @property
    def version(self) -> str:
        """Changes whenever the programs change, so that a cluster of older ones is replaced."""


class ImageStore(Protocol):
    """Builds images and keeps them."""

    def build(self, dockerfile: Path, context: Path, target: str, reference: str) -> None:
        """Build one target of a Dockerfile, as far as it has changed."""

    def save(self, reference: str, archive: Path) -> None:
        """Write an image as an archive."""

    def purge(self) -> None:
        """Remove everything that the store has written."""


class Provider(Protocol):
    """One way to get a cluster."""

    name: str

    def applies(self, profile: Profile) -> bool:
        """Whether this machine, with this environment, gets such a cluster this way."""

    def prepare(self, request: Request) -> None:
        """Make everything that `up` takes minutes for, such as compiled programs, and start nothing."""

    def up(self, request: Request) -> Cluster:
        """Return a healthy cluster: the one there is, or that one repaired, or a new one."""

    def down(self, request: Request, *, purge: bool) -> None:
        """Remove the cluster; with purge, the caches it was made from too."""

    def status(self, request: Request) -> Mapping[str, str]:
        """The parts of the cluster and how each of them is; empty if there is no cluster."""

    def load_image(self, cluster: Cluster, archive: Path) -> bool:
        """Make the images of an archive runnable in the cluster; False if they already were."""

    def load_built(self, cluster: Cluster, store: ImageStore, reference: str) -> bool:
        """The same for an image of a store, which may take less copying."""


@dataclass(frozen=True)
class Cluster:
    """A healthy cluster.

    Its API server may live in a network of its own: reach it through `run`, or start longer-lived
    programs with `command_prefix` in front of their arguments and `environment` as their environment.
    """

    name: str
    profile: Profile
    kubeconfig: Path
    """Administrator's credentials."""
    provider: Provider = field(repr=False)
    toolbox: Toolbox = field(repr=False)
    command_prefix: tuple[str, ...] = ()
    """Puts a command into the cluster's network; empty if that is the host's."""

    @cached_property
    def kubectl(self) -> Path:
        """Path of kubectl."""
        return self.toolbox.path("kubectl")

    @cached_property
    def helm(self) -> Path:
        """Path of helm; built on first use."""
        return self.toolbox.path("helm")

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the cluster's KUBECONFIG, and its kubectl first on PATH."""
        path = f"{self.kubectl.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        # The user's own cache would mix up clusters: they have the same address.
        cache = str(self.kubeconfig.parent / "kubectl-cache")
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": cache, "PATH": path}

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = 60,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the cluster's network and return what it printed.

        `env` is added to `environment`. With `check`, a non-zero exit raises ClusterError with the
        command's stderr; a command that outlives `timeout` seconds always does.
        """
        command = [*self.command_prefix, *map(str, argv)]
        try:
            done = subprocess.run(
                command,
                input=input,
                env={**self.environment, **(env or {})},
                timeout=timeout,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise ClusterError(f"{error.filename} is not installed") from None
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{shlex.join(command)} did not end within {timeout:g} s") from None
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise ClusterError(f"{shlex.join(command)} exited {done.returncode}: {said}")
        return done

    def load_image(self, archive: Path) -> bool:
        """Make the images of an OCI or docker archive runnable; False if they already were."""
        return self.provider.load_image(self, archive)

    def load_built(self, store: ImageStore, reference: str) -> bool:
        """Make an image of a store runnable; False if it already was."""
        return self.provider.load_built(self, store, reference)
