"""Leader election: a Lease (coordination.k8s.io/v1) of which one operator at a time is the holder.

The rules are those of client-go's leaderelection. The client package has one, too (kubernetes.aio.leaderelection), but
it judges by wall clocks, releases nothing, dies when a connection breaks, lets a request that hangs outlive the
deadline, and writes local time as UTC.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainyard.protocol import constants
from trainyard_operator.controller.reconciler import utc_now
from trainyard_operator.kube.api import ApiError, KubeApi

log = logging.getLogger(__name__)

Object = dict[str, Any]


class LeaseLost(Exception):
    """The holder must not act any longer; another one may already."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds, as client-go has them: duration > renew > retry, and the gap between the first two is for stopping."""

    duration: int = 15
    """How long a record that does not change keeps all others away."""
    renew: float = 10.0
    """How long after its last good renewal, counted from when that was sent, the holder goes on."""
    retry: float = 2.0
    """Between two attempts, and up to a fifth more."""

    @property
    def patience(self) -> float:
        """For one request: a connection that has died unseen leaves time for another one."""
        return self.renew / 3


TIMES = Times()


class Lease:
    """One candidate for the Lease `namespace`/`name`.

    Whether a record has expired is told by how long this process has seen it unchanged, by the event loop's clock; the
    times in it, of other clocks, are for people. Each write carries the resource version that was read.

    Args:
        api: for this alone; requests that wait for their turn behind those of jobs would cost the lease.
        namespace: of the Lease.
        name: of the Lease, which is made on first use.
        identity: of this candidate: the name of its pod. Who finds its own name there takes the lease at once, since
            the only earlier holder of that name is the dead process of the same pod. Elsewhere it must be unique.
        times: the same for all candidates.
        jitter: a number from 0 to 1.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        identity: str,
        times: Times = TIMES,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._api, self._identity = api, identity
        self._name = f"{namespace}/{name}"
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._times, self._jitter = times, jitter
        self._metadata = {"name": name, "labels": {constants.LABEL_MANAGED_BY: constants.MANAGED_BY}}
        self._record: Object = {}  # spec, as last seen
        self._seen_at = 0.0  # when it had last changed
        self._until = 0.0  # the holder's deadline
        self._trouble = ""

    @property
    def stands_by(self) -> bool:
        """Whether somebody else was the holder when this candidate last looked."""
        return self._holder(self._record) not in ("", self._identity)

    async def acquire(self) -> None:
        """Wait until this process is the holder; `hold` must follow."""
        while not await self._attempt(self._may_take):
            await self._pause()
        log.info("leads: %s is the holder of the lease %s", self._identity, self._name)

    async def hold(self) -> None:
        """Renew until cancelled.

        Raises:
            LeaseLost: somebody else is named in the record, or none could be written in time.
        """
        while True:
            try:
                async with asyncio.timeout_at(self._until):
                    await self._pause()
                    while not await self._attempt(self._must_be_mine):
                        await self._pause()
            except TimeoutError:
                why = f"{self._name} could not be renewed for {self._times.renew:g} s: {self._trouble or 'no answer'}"
                raise LeaseLost(f"the lease {why}") from None

    async def release(self) -> None:
        """Let the next one have it at once, if this process is the holder. Whatever it guards must have ended."""
        try:
            async with asyncio.timeout(self._times.patience):
                lease = await self._read()
                if lease is not None and self._holder(lease["spec"]) == self._identity:
                    await self._write(lease, "", duration=1)
                    log.info("released the lease %s", self._name)
        except (ApiError, TimeoutError) as error:
            why = str(error) or "no answer"
            log.warning("the lease %s is not released, others wait until it expires: %s", self._name, why)

    async def _attempt(self, check: Callable[[Object], bool]) -> bool:
        """Read, check, write: whether the record now names this process, which may go on until `_until`."""
        try:
            lease = await self._read()
            if not check(lease["spec"] if lease else {}):
                return False
            sent = self._now()
            self._see(await self._write(lease, self._identity, self._times.duration))
        except ApiError as error:
            if error.code != 409:  # somebody was faster
                self._note(f"{error.code or 'no answer'}: {error}")
            return False
        self._until, self._trouble = sent + self._times.renew, ""
        return True

    def _may_take(self, record: Object) -> bool:
        if self._holder(record) in ("", self._identity):
            return True
        age = self._now() - self._seen_at
        return age >= (record.get("leaseDurationSeconds") or self._times.duration)

    def _must_be_mine(self, record: Object) -> bool:
        if (holder := self._holder(record)) != self._identity:
            raise LeaseLost(f"the lease {self._name} was taken away: its holder is {holder or 'nobody'}")
        return True

    async def _read(self) -> Object | None:
        """The Lease; None if there is none."""
        try:
            lease = await self._api.request("GET", self._path, patience=self._times.patience)
        except ApiError as error:
            if error.code != 404:
                raise
            self._see({})
            return None
        lease.setdefault("spec", {})
        self._see(lease)
        return lease

    async def _write(self, lease: Object | None, holder: str, duration: int) -> Object:
        """Create or replace it; the answer. With 409 somebody was faster."""
        old = lease["spec"] if lease else {}
        now = utc_now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # a MicroTime
        taken = self._holder(old) != holder
        record = {
            **old,
            "holderIdentity": holder,
            "leaseDurationSeconds": duration,
            "acquireTime": now if taken else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": old.get("leaseTransitions", 0) + (taken and holder != "" and lease is not None),
        }
        kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        metadata = lease["metadata"] if lease else self._metadata
        verb, path = ("PUT", self._path) if lease else ("POST", self._collection)
        body = {**kind, "metadata": metadata, "spec": record}
        return await self._api.request(verb, path, body, patience=self._times.patience)

    def _see(self, lease: Object) -> None:
        record = lease.get("spec", {})
        if record != self._record:
            if (holder := self._holder(record)) not in ("", self._identity, self._holder(self._record)):
                log.info("stands by: the holder of the lease %s is %s", self._name, holder)
            self._record, self._seen_at = record, self._now()

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("cannot read or write the lease %s: %s", self._name, trouble)
        self._trouble = trouble

    async def _pause(self) -> None:
        await asyncio.sleep(self._times.retry * (1 + 0.2 * self._jitter()))

    @staticmethod
    def _holder(record: Object) -> str:
        return record.get("holderIdentity") or ""

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
