"""The command line."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster import api, chart, versions
from tests.cluster.images import TARGETS
from tests.cluster.model import Cluster, ClusterError, Profile
from tests.cluster.progress import say, step

EXIT_FAILED = 1
EXIT_NOT_HEALTHY = 3
"""As `systemctl status` and init scripts (LSB) exit when a service is not running."""

DESCRIPTION = """\
A real Kubernetes cluster for tests. The first of these that is there provides it:
  1. the cluster that TRAINYARD_TEST_KUBECONFIG names (used as it is, never removed)
  2. etcd and kube-apiserver in KUBEBUILDER_ASSETS (only for --control-plane)
  3. kind, where docker or podman runs (only for a cluster with a node)
  4. Kubernetes built from Go modules, run by this tool (a node needs root)
"""
EPILOG = """\
State is kept in /var/lib/trainyard-cluster/NAME (of a control plane in
~/.local/state/trainyard/control-plane/NAME); TRAINYARD_CLUSTER_DIR overrides both.
TRAINYARD_TEST_KUBERNETES=1.34 runs another version than {default} (known: {versions}).
Programs are cached in ~/.cache/trainyard. Logs of removed clusters go to build/cluster-logs/NAME.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the cluster is not there or not healthy (status).
""".format(default=versions.DEFAULT, versions=", ".join(versions.VERSIONS))


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        "python -m tests.cluster", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw
    )
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--name", default=api.DEFAULT_NAME, help="for several clusters at once (default: %(default)s)")
    which.add_argument(
        "--control-plane",
        dest="profile",
        action="store_const",
        const=Profile.CONTROL_PLANE,
        default=Profile.NODE,
        help="etcd and kube-apiserver only: fast, without root, runs no pods",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[which], help=help, description=help)
        added.set_defaults(action=action)
        return added

    command("up", up, "make the cluster healthy: create it, repair it, or leave it as it is")
    command("prepare", prepare, "compile programs and build images ahead of time; starts nothing")
    removal = command("down", down, "remove the cluster; its logs are kept")
    removal.add_argument("--purge", action="store_true", help="remove the caches of programs and images too")
    command("status", status, "show how each part of the cluster is")
    building = command("build-images", build_images, "build the project's images and load them into the cluster")
    building.add_argument("--target", action="append", choices=TARGETS, help="only this one (may be repeated)")
    building.add_argument("--no-load", action="store_true", help="only build; needs no cluster")
    loading = command("load-image", load_image, "load the images of an OCI or docker archive into the cluster")
    loading.add_argument("archive", type=Path)
    rendering = command("render-chart", render_chart, "print the manifests of the Helm chart; needs no cluster")
    rendering.add_argument("--namespace", default="trainyard-system", help="(default: %(default)s)")
    command("env", env, "print shell commands that point kubectl at the cluster, for `eval`")
    run = command("exec", execute, "run a command with the cluster's network, KUBECONFIG and kubectl")
    run.add_argument("argv", nargs="+", metavar="ARG", help="the command; put -- in front of it")
    return top


def up(options: argparse.Namespace) -> int:
    """Create or repair."""
    with step("cluster up"):
        cluster = _cluster(options)
    say(f"provider {cluster.provider.name}, kubeconfig {cluster.kubeconfig}")
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Compile and build, at the pace that the rest of the machine leaves."""
    os.nice(19)
    with step("preparing programs and images"):
        api.prepare()
    return 0


def down(options: argparse.Namespace) -> int:
    """Remove."""
    api.down(options.profile, name=options.name, purge=options.purge)
    return 0


def status(options: argparse.Namespace) -> int:
    """Show."""
    parts = api.status(options.profile, name=options.name)
    for part, state in parts.items():
        print(f"{part:24} {state}")
    if not parts:
        print("no cluster")
    healthy = parts and all(state.startswith("healthy") for state in parts.values())
    return 0 if healthy else EXIT_NOT_HEALTHY


def build_images(options: argparse.Namespace) -> int:
    """Build, and unless told otherwise load."""
    cluster = None if options.no_load else _cluster(options)
    for name in api.build_images(cluster, options.target or TARGETS).values():
        print(name)
    return 0


def load_image(options: argparse.Namespace) -> int:
    """Load an archive."""
    with step(f"loading {options.archive}"):
        if not _cluster(options).load_image(options.archive):
            say("its images are loaded already")
    return 0


def render_chart(options: argparse.Namespace) -> int:
    """Let helm render it."""
    print(chart.render_chart(options.namespace), end="")
    return 0


def env(options: argparse.Namespace) -> int:
    """Print variables; KUBECTL and HELM because a cluster may have a network of its own."""
    cluster = _cluster(options)
    values = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "PATH": cluster.environment["PATH"],
        "TRAINYARD_CLUSTER_PREFIX": shlex.join(cluster.command_prefix),
    }
    for key, value in values.items():
        print(f"export {key}={shlex.quote(value)}")
    if cluster.command_prefix:
        print("# The cluster has a network of its own: $TRAINYARD_CLUSTER_PREFIX kubectl get nodes")
    return 0


def execute(options: argparse.Namespace) -> int:
    """Become the command, so that signals and the terminal are its own."""
    cluster = _cluster(options)
    argv = [*cluster.command_prefix, *options.argv]
    try:
        os.execvpe(argv[0], argv, cluster.environment)
    except FileNotFoundError:
        raise ClusterError(f"{argv[0]} is not installed") from None


def _cluster(options: argparse.Namespace) -> Cluster:
    return api.up(options.profile, name=options.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(argv)
    try:
        code: int = options.action(options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    return code
