"""How the operator's process is told what to do: by the command line, or by the environment."""

import argparse
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from trainyard.protocol import constants


@dataclass(frozen=True, slots=True)
class Options:
    """How one operator runs."""

    trainer_image: str
    namespace: str | None
    port: int
    progress_interval: float
    resync_interval: float
    key_secret: tuple[str, str] | None = None
    """Namespace and name of the Secret with the operator's key; None: a key that goes with the process."""
    lease: tuple[str, str] | None = None
    """Namespace and name of the Lease whose holder leads; None: this operator is the only one."""
    identity: str = ""
    """Of this operator, as a candidate for the lease."""


def parse_options(arguments: Sequence[str]) -> tuple[Options, str]:
    """Options and log level from the command line; each defaults to an environment variable."""
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="trainyard-operator", description="Runs TrainingJobs on this cluster.")
    parser.add_argument(
        "--trainer-image",
        default=env("TRAINYARD_TRAINER_IMAGE"),
        required="TRAINYARD_TRAINER_IMAGE" not in os.environ,
        help="image of the built-in trainer, for jobs without spec.image (TRAINYARD_TRAINER_IMAGE)",
    )
    parser.add_argument(
        "--namespace", default=env("TRAINYARD_WATCH_NAMESPACE") or None, help="watch one namespace instead of all"
    )
    parser.add_argument(
        "--port", type=int, default=int(env("TRAINYARD_PORT", "8080")), help="port of health and metrics"
    )
    parser.add_argument(
        "--progress-interval",
        type=float,
        default=float(env("TRAINYARD_PROGRESS_INTERVAL", "5")),
        help="seconds between two readings of a job's progress",
    )
    parser.add_argument(
        "--resync-interval",
        type=float,
        default=float(env("TRAINYARD_RESYNC_INTERVAL", "300")),
        help="seconds between two complete lists, which repair what a watch stream has missed",
    )
    parser.add_argument(
        "--key-secret",
        metavar="NAMESPACE/NAME",
        default=env("TRAINYARD_KEY_SECRET") or None,
        help="Secret of the operator's own, made on first use; without it pods obey only the operator that made them",
    )
    parser.add_argument(
        "--lease",
        metavar="NAMESPACE/NAME",
        default=env("TRAINYARD_LEASE") or None,
        help="Lease by which several operators, each with its own POD_ID, elect one; without it this one is the only",
    )
    level = env(constants.ENV_LOG_LEVEL, "info")
    parser.add_argument("--log-level", default=level, choices=["debug", "info", "warning"])
    given = parser.parse_args(arguments)
    options = Options(
        given.trainer_image,
        given.namespace,
        given.port,
        given.progress_interval,
        given.resync_interval,
        key_secret=_namespaced(parser, "--key-secret", given.key_secret),
        lease=_namespaced(parser, "--lease", given.lease),
        # In a pod its name; elsewhere the host's, and what makes it unique.
        identity=env("POD_ID") or f"{socket.gethostname()}_{secrets.token_hex(4)}",
    )
    return options, given.log_level


def _namespaced(parser: argparse.ArgumentParser, option: str, value: str | None) -> tuple[str, str] | None:
    namespace, _, name = (value or "").partition("/")
    if value and not (namespace and name):
        parser.error(f"{option}: must be NAMESPACE/NAME, not {value}")
    return (namespace, name) if value else None
