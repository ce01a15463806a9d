"""What this machine must have before a cluster is built on it; everything that is missing is named at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.cluster.binaries import find_go
from tests.cluster.cgroups import hierarchies
from tests.cluster.model import ClusterError, Profile, Toolbox
from tests.cluster.process import search_path
from tests.cluster.versions import selected

NODE_PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "busybox": "busybox-static",
}
"""Programs that a node runs, and the Debian package of each."""
IMAGE_PACKAGES = {
    "buildah": "buildah",
    "containers-storage": "containers-storage",
    "mmdebstrap": "mmdebstrap",
}
"""Programs that build images without a container engine, and the Debian package of each."""
PLUGIN_PACKAGE = "containernetworking-plugins"
PLUGINS = ("bridge", "host-local", "loopback", "portmap")
"""CNI plugins that the pods' network is made of."""
PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
ROOT = "root: use sudo, or --control-plane, or name a cluster of your own in TRAINYARD_TEST_KUBECONFIG"

_IN_NAMESPACE = "unshare --net --mount --propagation=private"
_KERNEL = {
    "network and mount namespaces (is this a container without CAP_SYS_ADMIN?)": "true",
    "bridges and veth pairs (modprobe bridge veth)": (
        "ip link add probe0 type bridge && ip link add probe1 type veth peer name probe2"
    ),
    "iptables with NAT (modprobe iptable_nat, or nft_compat)": "iptables -w -t nat -A POSTROUTING -j MASQUERADE",
    "overlayfs in {folder} (modprobe overlay)": (
        "mkdir lower upper work merged && mount -t overlay probe -o lowerdir=lower,upperdir=upper,workdir=work merged"
    ),
}
"""What a node needs of the kernel, and the shell commands that try it in namespaces of their own."""


def plugin_folder() -> Path | None:
    """Return the folder of the CNI plugins; None if no folder has all of them."""
    return next((f for f in PLUGIN_FOLDERS if all((f / plugin).exists() for plugin in PLUGINS)), None)


def check(profile: Profile, toolbox: Toolbox, tools: Sequence[str], folder: Path) -> None:
    """Raise ClusterError with one line for each thing that a cluster lacks here, and one command for all packages.

    `tools` are the programs that the cluster takes from the toolbox; `folder` will hold its state.
    """
    problems = list(_go_problems(toolbox, tools))
    # A control plane needs no privilege and no package.
    if profile is Profile.NODE:
        problems = [*_package_problems(), *problems, *_root_problems(folder)]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ClusterError(f"a cluster ({profile}) cannot run on this machine. It needs:\n{lines}")


def _package_problems() -> Iterator[str]:
    """Name the missing programs and plugins, with the command that installs all of them."""
    absent = {program: package for program, package in {**NODE_PACKAGES, **IMAGE_PACKAGES}.items() if not _has(program)}
    if plugin_folder() is None:
        absent[f"CNI plugins ({', '.join(PLUGINS)})"] = PLUGIN_PACKAGE
    if absent:
        packages = " ".join(sorted(set(absent.values())))
        yield f"{', '.join(absent)}: apt-get install --no-install-recommends {packages}"


def _go_problems(toolbox: Toolbox, tools: Sequence[str]) -> Iterator[str]:
    """Say why programs that are not compiled yet cannot be compiled."""
    if toolbox.missing(tools):
        try:
            find_go(selected().module)
        except ClusterError as error:
            yield str(error)


def _root_problems(folder: Path) -> Iterator[str]:
    """Say that root is needed, or try as root what the kernel must offer."""
    if os.geteuid() != 0:
        yield ROOT
        return
    if not _memory_cgroups():
        yield "kernel: cgroups with the memory controller, mounted below /sys/fs/cgroup"
    # Without these programs nothing can be tried; they are in the list of packages already.
    if all(map(_has, ("unshare", "ip", "iptables"))):
        yield from _kernel_problems(folder)


def _memory_cgroups() -> bool:
    """Return whether a cgroup hierarchy of version 1 or 2 limits memory."""
    mounted = hierarchies(Path("/proc/self/mountinfo").read_text())
    return any((top / file).exists() for top in mounted for file in ("memory.limit_in_bytes", "memory.stat"))


def _kernel_problems(folder: Path) -> Iterator[str]:
    """Name each kernel feature whose commands fail, with what they print."""
    parent = next(path for path in (folder, *folder.parents) if path.is_dir())
    environment = {**os.environ, "PATH": search_path()}
    for feature, commands in _KERNEL.items():
        with tempfile.TemporaryDirectory(prefix=".trainyard-probe-", dir=parent) as scratch:
            argv = [*_IN_NAMESPACE.split(), "sh", "-ec", commands]
            done = subprocess.run(argv, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            yield f"kernel: {feature.format(folder=parent)}: {done.stderr.strip()}"


def _has(program: str) -> bool:
    return shutil.which(program, path=search_path()) is not None
