"""The operator's options, from the command line or the environment."""

import argparse
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from trainyard.protocol import constants
from trainyard.protocol.launcher_dns import cluster_domain


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one operator process."""

    trainer_image: str
    cluster_domain: str
    """DNS domain of the cluster; empty if it is not known."""
    namespaces: tuple[str, ...]
    """Namespaces to watch; empty: all."""
    port: int
    progress_interval: float
    resync_interval: float
    key_secret: tuple[str, str] | None = None
    """Namespace and name of the Secret with the operator's key; None: the key lasts as long as the process."""
    lease: tuple[str, str] | None = None
    """Namespace and name of the Lease for leader election; None: this operator is the only one."""
    identity: str = ""
    """Unique name of this operator in the leader election."""


def parse_options(arguments: Sequence[str]) -> tuple[Options, str]:
    """Return the options and the log level; each option defaults to an environment variable."""
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="trainyard-operator", description="Manages TrainingJobs on a cluster.")
    parser.add_argument(
        "--trainer-image",
        default=env("TRAINYARD_TRAINER_IMAGE"),
        required="TRAINYARD_TRAINER_IMAGE" not in os.environ,
        help="image of the built-in trainer, for jobs without spec.image (TRAINYARD_TRAINER_IMAGE)",
    )
    parser.add_argument(
        "--cluster-domain",
        default=env("TRAINYARD_CLUSTER_DOMAIN") or cluster_domain(),
        help="DNS domain of the cluster (TRAINYARD_CLUSTER_DOMAIN); by default that in the pod's /etc/resolv.conf",
    )
    parser.add_argument(
        "--namespaces",
        metavar="NAME,NAME",
        default=env("TRAINYARD_WATCH_NAMESPACES") or "",
        help="watch these namespaces instead of all, without any right on the cluster",
    )
    parser.add_argument(
        "--port", type=int, default=int(env("TRAINYARD_PORT", "8080")), help="port of the probes and metrics"
    )
    parser.add_argument(
        "--progress-interval",
        type=float,
        default=float(env("TRAINYARD_PROGRESS_INTERVAL", "5")),
        help="seconds between two reads of a job's progress",
    )
    parser.add_argument(
        "--resync-interval",
        type=float,
        default=float(env("TRAINYARD_RESYNC_INTERVAL", "300")),
        help="seconds between two complete lists, which repair what the watch streams have missed",
    )
    parser.add_argument(
        "--key-secret",
        metavar="NAMESPACE/NAME",
        default=env("TRAINYARD_KEY_SECRET") or None,
        help="Secret with the operator's key, created on first use; without it a new operator cannot restart in place",
    )
    parser.add_argument(
        "--lease",
        metavar="NAMESPACE/NAME",
        default=env("TRAINYARD_LEASE") or None,
        help="Lease for leader election among operators, each with its own POD_ID; without it this one is the only",
    )
    level = env(constants.ENV_LOG_LEVEL, "info")
    parser.add_argument("--log-level", default=level, choices=["debug", "info", "warning"])
    parsed = parser.parse_args(arguments)
    options = Options(
        parsed.trainer_image,
        parsed.cluster_domain,
        tuple(dict.fromkeys(name.strip() for name in parsed.namespaces.split(",") if name.strip())),
        parsed.port,
        parsed.progress_interval,
        parsed.resync_interval,
        key_secret=_namespaced(parser, "--key-secret", parsed.key_secret),
        lease=_namespaced(parser, "--lease", parsed.lease),
        # The name of the pod; outside of a cluster the host name with a random suffix.
        identity=env("POD_ID") or f"{socket.gethostname()}_{secrets.token_hex(4)}",
    )
    return options, parsed.log_level


def _namespaced(parser: argparse.ArgumentParser, option: str, value: str | None) -> tuple[str, str] | None:
    namespace, _, name = (value or "").partition("/")
    if value and not (namespace and name):
        parser.error(f"{option}: must be NAMESPACE/NAME, not {value}")
    return (namespace, name) if value else None
