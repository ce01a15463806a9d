"""The operator's process: serve probes, wait for the lease, fill the cache, then watch, reconcile and poll."""

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import kopf
from kubernetes.aio.config import ConfigException

from trainyard.json_log import JsonFormatter
from trainyard.time import utc_now
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.progress import ProgressPoller
from trainyard_operator.controller.reconciler import Reconciler
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.api import ApiError, KubeApi, connect
from trainyard_operator.kube.backend import KubernetesBackend
from trainyard_operator.kube.lease import Lease, LeaseLost
from trainyard_operator.kube.metrics import OperatorMetrics
from trainyard_operator.kube.operator_key import operator_key
from trainyard_operator.kube.pod_watch import PodWatch, watch_pods
from trainyard_operator.kube.probes import Health, serve
from trainyard_operator.kube.resync import LIST_RETRY, Resync
from trainyard_operator.kube.watch import make_registry, make_settings
from trainyard_operator.options import Options, parse_options
from trainyard_operator.parts import Part, run_parts

log = logging.getLogger("trainyard_operator")

MAX_JSON_DEPTH = 10_000
"""Levels of nesting that the API server admits. Python's parser must read them, since one object that it cannot read
would make a complete list unreadable; `controller.unreadable` refuses such a job afterwards."""


async def operate(options: Options) -> None:
    """Run the operator until SIGTERM or SIGINT. A part of it that fails is restarted; only a lost lease ends it.

    Raises:
        ConfigException: there is neither a service account nor a kubeconfig.
        LeaseLost: another operator may be the leader now, so this one must end.
    """
    cache: Cache = Cache()
    queue: WorkQueue[Key] = WorkQueue()
    metrics = OperatorMetrics(cache, queue)
    # The lease has its own connections, so that it never queues behind requests that hang in a webhook.
    async with connect(metrics.count_request) as api, connect(metrics.count_request) as lease_api:
        lease = Lease(lease_api, *options.lease, options.identity) if options.lease else None
        resync = Resync(api, cache, queue, options.namespaces, options.resync_interval)
        async with serve(Health(cache, queue, resync, lease), metrics.registry, options.port) as port:
            log.info("serving /healthz, /readyz and /metrics on port %d", port)
            stop = asyncio.Event()
            _set_on_signals(stop)
            work = partial(_work, options, api, resync, metrics, stop)
            await _until_first(_lead(lease, work) if lease else work(), stop.wait())


async def _lead(lease: Lease, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Wait for the lease, work while this process holds it, and release it when all work has ended."""
    try:
        await lease.acquire()
        await _until_first(lease.hold(), work())
    finally:
        await lease.release()


async def _work(options: Options, api: KubeApi, resync: Resync, metrics: OperatorMetrics, stop: asyncio.Event) -> None:
    """Fill the cache, then watch, reconcile and poll."""
    cache, queue = resync.cache, resync.queue
    with metrics.leading():
        version = await _prime(resync)
        # All modules are loaded: the garbage collector need not visit their objects again and again.
        gc.freeze()
        key = await operator_key(api, *options.key_secret) if options.key_secret else secrets.token_bytes(32)
        backend = KubernetesBackend(api, key)
        reconciler = Reconciler(
            cache,
            queue,
            backend,
            options.trainer_image,
            options.cluster_domain,
            on_reconciled=metrics.observe_reconcile,
        )
        poller = ProgressPoller(cache, queue, backend, utc_now, options.progress_interval)
        pod_watches = [PodWatch(api, cache, queue, where, version) for where in options.namespaces or (None,)]
        await run_parts(
            {
                Part.WATCH: partial(_watch, resync, stop),
                Part.PODS: partial(watch_pods, pod_watches),
                Part.RECONCILE: reconciler.run,
                Part.PROGRESS: poller.run,
                Part.RESYNC: resync.run,
            },
            metrics.count_failure,
        )


async def _watch(resync: Resync, stop: asyncio.Event) -> None:
    """Feed the cache with jobs from kopf's watch streams until cancelled."""
    watched, listed = asyncio.Event(), asyncio.Event()
    watching = kopf.operator(
        registry=make_registry(resync.cache, resync.queue, listed),
        settings=make_settings(),
        clusterwide=not resync.namespaces,
        namespaces=resync.namespaces,
        ready_flag=watched,
    )
    await _until_first(watching, _restore_signal_handlers(watched, stop), resync.follow(listed))


def _set_on_signals(stop: asyncio.Event) -> None:
    """Set an event on SIGTERM and SIGINT, which process 1 of a container ignores without a handler."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _restore_signal_handlers(watched: asyncio.Event, stop: asyncio.Event) -> None:
    """Install the signal handlers again after kopf has replaced them.

    kopf's handlers wait 5 s for tasks that kopf did not start.
    """
    await watched.wait()
    _set_on_signals(stop)
    await asyncio.Event().wait()


async def _prime(resync: Resync) -> int:
    """Fill the cache, and retry until the API server and the CRD are available. Return its resource version."""
    while True:
        try:
            version = await resync.prime()
        except ApiError as error:
            hint = "is the CRD installed? (helm install trainyard charts/trainyard)" if error.code == 404 else ""
            log.warning("cannot list TrainingJobs: %s %s; next try in %.0f s", error, hint, LIST_RETRY)
            await asyncio.sleep(LIST_RETRY)
        else:
            log.info("the cache is filled: %d jobs", len(resync.cache))
            return version


async def _until_first(*parts: Coroutine[Any, Any, object]) -> None:
    """Run coroutines until the first one ends or fails, then cancel the others."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _configure_logging(level: str) -> None:
    """Log plain text to a terminal, and JSON otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s")
        if sys.stderr.isatty()
        else JsonFormatter(with_logger=True)
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it logs every event of its watch streams


def main() -> None:
    """Run the command `trainyard-operator`."""
    options, level = parse_options(sys.argv[1:])
    # The parser calls itself once for each level, and the copy that kopf makes of each object twice.
    sys.setrecursionlimit(2 * MAX_JSON_DEPTH + 5000)
    _configure_logging(level)
    # kopf needs a name: its default is the user name, which does not exist in a container.
    os.environ.setdefault("POD_ID", socket.gethostname())
    try:
        asyncio.run(operate(options))
    except LeaseLost as error:
        log.error("%s; exiting, to be restarted as a standby replica", error)
        sys.exit(1)
    except ConfigException as error:
        sys.exit(f"trainyard-operator: cannot connect to a cluster: {error}; set KUBECONFIG or run inside a cluster")


if __name__ == "__main__":
    main()
