"""The operator's process: serve, wait for the lease, fill the cache, then watch, reconcile and poll until the end."""

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any

import kopf
from kubernetes.aio.config import ConfigException

from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.progress import ProgressPoller
from trainyard_operator.controller.reconciler import Reconciler, utc_now
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.api import ApiError, KubeApi, connect
from trainyard_operator.kube.backend import KubernetesBackend
from trainyard_operator.kube.lease import Lease, LeaseLost
from trainyard_operator.kube.metrics import OperatorMetrics
from trainyard_operator.kube.operator_key import operator_key
from trainyard_operator.kube.probes import Health, serve
from trainyard_operator.kube.resync import Resync
from trainyard_operator.kube.watch import make_registry, make_settings
from trainyard_operator.options import Options, parse_options

log = logging.getLogger("trainyard_operator")

PRIME_RETRY = 2.0


async def operate(options: Options) -> None:
    """Run the operator until it is told to stop (SIGTERM, SIGINT), or until a part of it fails.

    Raises:
        ConfigException: there is no way to log in to a cluster.
        LeaseLost: another operator may lead now, so this one must end.
    """
    cache: Cache = Cache()
    queue: WorkQueue[Key] = WorkQueue()
    metrics = OperatorMetrics(cache, queue)
    # The lease has connections of its own: it must not wait behind fifty requests that hang in somebody's webhook.
    async with connect(metrics.count_request) as api, connect(metrics.count_request) as lease_api:
        lease = Lease(lease_api, *options.lease, options.identity) if options.lease else None
        resync = Resync(api, cache, queue, options.namespace, options.resync_interval)
        async with serve(Health(cache, queue, resync, lease), metrics.registry, options.port) as port:
            log.info("serving /healthz, /readyz and /metrics on port %d", port)
            stop = asyncio.Event()
            _set_by_signals(stop)
            work = partial(_work, options, api, resync, metrics, stop)
            await _until_first(_lead(lease, work) if lease else work(), stop.wait())


async def _lead(lease: Lease, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Wait for the lease, work while it holds, and leave it to the next one when all work has ended."""
    try:
        await lease.acquire()
        await _until_first(lease.hold(), work())
    finally:
        await lease.release()


async def _work(options: Options, api: KubeApi, resync: Resync, metrics: OperatorMetrics, stop: asyncio.Event) -> None:
    """Fill the cache, then watch, reconcile and poll."""
    cache, queue = resync.cache, resync.queue
    with metrics.leading():
        await _prime(resync)
        key = await operator_key(api, *options.key_secret) if options.key_secret else secrets.token_bytes(32)
        backend = KubernetesBackend(api, key)
        reconciler = Reconciler(cache, queue, backend, options.trainer_image, observe_seconds=metrics.observe_reconcile)
        poller = ProgressPoller(cache, queue, backend, utc_now, options.progress_interval)
        watching = kopf.operator(
            registry=make_registry(cache, queue),
            settings=make_settings(),
            clusterwide=options.namespace is None,
            namespaces=[options.namespace] if options.namespace else [],
            ready_flag=(watched := asyncio.Event()),
        )
        await _until_first(watching, reconciler.run(), poller.run(), resync.run(), _take_signals_back(watched, stop))


def _set_by_signals(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT set it. Process 1 of a container would ignore them unhandled."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _take_signals_back(watched: asyncio.Event, stop: asyncio.Event) -> None:
    """From kopf, which takes them over when it starts, and on a signal waits 5 s for tasks that it did not start."""
    await watched.wait()
    _set_by_signals(stop)
    await stop.wait()


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
    """Run the parts until one ends, by a signal or by failing."""
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


def main() -> None:
    """Entry point of `trainyard-operator`."""
    options, level = parse_options(sys.argv[1:])
    _set_up_logs(level)
    # Without it kopf names itself after the user, and in a container the user has no name.
    os.environ.setdefault("POD_ID", socket.gethostname())
    try:
        asyncio.run(operate(options))
    except LeaseLost as error:
        log.error("%s; this operator ends, to start again as one that stands by", error)
        sys.exit(1)
    except ConfigException as error:
        sys.exit(f"trainyard-operator: no cluster to work on: {error}; set KUBECONFIG or run inside a cluster")


if __name__ == "__main__":
    main()
