"""The operator's process: log in, fill the cache, then watch, reconcile, poll and serve until told to stop."""

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kopf
from kubernetes.aio.config import ConfigException

from trainyard import contract
from trainyard_operator.backends.kubernetes import KubernetesBackend
from trainyard_operator.core.cache import Cache, Key
from trainyard_operator.core.progress import ProgressPoller
from trainyard_operator.core.queue import WorkQueue
from trainyard_operator.core.reconcile import Reconciler, utc_now
from trainyard_operator.kube.api import ApiError, connect
from trainyard_operator.kube.feeders import make_registry, make_settings
from trainyard_operator.kube.key import operator_key
from trainyard_operator.kube.metrics import OperatorMetrics
from trainyard_operator.kube.resync import Resync
from trainyard_operator.kube.web import Health, serve

log = logging.getLogger("trainyard_operator")

PRIME_RETRY = 2.0


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


async def operate(options: Options) -> None:
    """Run the operator until it is told to stop (SIGTERM, SIGINT), or until a part of it fails.

    Raises:
        ConfigException: there is no way to log in to a cluster.
    """
    cache: Cache = Cache()
    queue: WorkQueue[Key] = WorkQueue()
    metrics = OperatorMetrics(cache, queue)
    async with connect(metrics.count_request) as api:
        key = await operator_key(api, *options.key_secret) if options.key_secret else secrets.token_bytes(32)
        backend = KubernetesBackend(api, key)
        resync = Resync(api, cache, queue, options.namespace, options.resync_interval)
        reconciler = Reconciler(cache, queue, backend, options.trainer_image, observe_seconds=metrics.observe_reconcile)
        poller = ProgressPoller(cache, queue, backend, utc_now, options.progress_interval)
        async with serve(Health(cache, queue, resync), metrics.registry, options.port) as port:
            log.info("serving /healthz, /readyz and /metrics on port %d", port)
            stop = _stop_on_signals()
            await _until_first(_prime(resync), stop.wait())
            if stop.is_set():
                return
            watching = kopf.operator(
                registry=make_registry(cache, queue),
                settings=make_settings(),
                clusterwide=options.namespace is None,
                namespaces=[options.namespace] if options.namespace else [],
                stop_flag=stop,
            )
            await _until_first(watching, reconciler.run(), poller.run(), resync.run())


def _stop_on_signals() -> asyncio.Event:
    """Set by SIGTERM and SIGINT until kopf takes them over. Process 1 of a container would ignore them unhandled."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _prime(resync: Resync) -> None:
    """Fill the cache, however long the API server or the CRD takes to appear; not ready until then."""
    while True:
        try:
            await resync.prime()
        except ApiError as error:
            hint = "is the CRD installed? (helm install trainyard charts/trainyard)" if error.code == 404 else ""
            log.warning("cannot list TrainingJobs: %s %s; trying again in %.0f s", error, hint, PRIME_RETRY)
            await asyncio.sleep(PRIME_RETRY)
        else:
            log.info("%d jobs exist", len(resync.cache))
            return


async def _until_first(*parts: Coroutine[Any, Any, object]) -> None:
    """Run the parts until one ends: kopf's does on a signal, the others only by failing."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _set_up_logs(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s") if sys.stderr.isatty() else _JsonFormatter()
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it reports each watch stream's every event


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
    level = env(contract.ENV_LOG_LEVEL, "info")
    parser.add_argument("--log-level", default=level, choices=["debug", "info", "warning"])
    given = parser.parse_args(arguments)
    namespace, _, name = (given.key_secret or "").partition("/")
    if given.key_secret and not (namespace and name):
        parser.error(f"--key-secret: must be NAMESPACE/NAME, not {given.key_secret}")
    options = Options(
        given.trainer_image,
        given.namespace,
        given.port,
        given.progress_interval,
        given.resync_interval,
        key_secret=(namespace, name) if given.key_secret else None,
    )
    return options, given.log_level


def main() -> None:
    """Entry point of `trainyard-operator`."""
    options, level = parse_options(sys.argv[1:])
    _set_up_logs(level)
    # Without it kopf names itself after the user, and in a container the user has no name.
    os.environ.setdefault("POD_ID", socket.gethostname())
    try:
        asyncio.run(operate(options))
    except ConfigException as error:
        sys.exit(f"trainyard-operator: no cluster to work on: {error}; set KUBECONFIG or run inside a cluster")


if __name__ == "__main__":
    main()
