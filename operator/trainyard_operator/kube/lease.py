"""Leader election by a Lease (coordination.k8s.io/v1) that one operator at a time holds.

The rules are those of client-go's leaderelection. kubernetes.aio.leaderelection is not used: it compares wall clocks,
never releases the lease, fails when a connection breaks, lets a request that hangs outlive the deadline, and writes
local time as UTC.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainyard.protocol import constants
from trainyard.time import format_micro_time, utc_now
from trainyard_operator.kube.api import ApiError, KubeApi

log = logging.getLogger(__name__)

Object = dict[str, Any]


class LeaseLost(Exception):
    """The holder must stop: another operator may be the leader already."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Durations in seconds, as in client-go: duration > renew > retry.

    The difference between the first two is the time in which a leader that cannot renew has to stop.
    """

    duration: int = 15
    """How long a record that does not change excludes all other candidates (leaseDurationSeconds)."""
    renew: float = 10.0
    """How long the holder continues after its last successful renewal, counted from when that was sent."""
    retry: float = 2.0
    """Time between two attempts, with up to 20 % of jitter added."""

    @property
    def request_timeout(self) -> float:
        """Timeout of one request: a dead connection leaves time for another request before the deadline."""
        return self.renew / 3


TIMES = LeaseTimes()


class Lease:
    """One candidate for the Lease `namespace`/`name`.

    A record has expired once this process has seen it unchanged for its duration, by the clock of the event loop; the
    times in the record come from other clocks and are informative only. Each write carries the resource version that
    was read.

    Args:
        api: a client for the lease alone; requests that queue behind those of jobs could cost the lease.
        namespace: namespace of the Lease.
        name: name of the Lease, which is created on first use.
        identity: unique name of this candidate: that of its pod. A candidate that finds its own name in the record
            takes the lease at once, since the earlier holder was a dead process of the same pod.
        times: durations, the same for all candidates.
        jitter: returns a random number from 0 to 1.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes = TIMES,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._api, self._identity = api, identity
        self._name = f"{namespace}/{name}"
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._times, self._jitter = times, jitter
        self._metadata = {"name": name, "labels": {constants.LABEL_MANAGED_BY: constants.MANAGED_BY}}
        self._record: Object = {}  # spec of the Lease when it was last read
        self._changed_at = 0.0  # when the record last changed
        self._deadline = 0.0  # until when the holder may continue
        self._last_error = ""

    @property
    def is_standby(self) -> bool:
        """Whether another candidate held the lease when this one last read it."""
        return self._holder(self._record) not in ("", self._identity)

    async def acquire(self) -> None:
        """Wait until this process holds the lease; the caller must call `hold` afterwards."""
        while not await self._try_to_write(self._may_take):
            await self._pause()
        log.info("leader: %s holds the lease %s", self._identity, self._name)

    async def hold(self) -> None:
        """Renew the lease until cancelled.

        Raises:
            LeaseLost: another candidate holds the lease, or it could not be renewed in time.
        """
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    await self._pause()
                    while not await self._try_to_write(self._must_be_holder):
                        await self._pause()
            except TimeoutError:
                cause = self._last_error or "no response"
                message = f"the lease {self._name} could not be renewed for {self._times.renew:g} s: {cause}"
                raise LeaseLost(message) from None

    async def release(self) -> None:
        """Release the lease, so that another candidate can take it at once.

        Everything that it protects must have ended before. Does nothing if this process is not the holder.
        """
        try:
            async with asyncio.timeout(self._times.request_timeout):
                lease = await self._read()
                if lease is not None and self._holder(lease["spec"]) == self._identity:
                    await self._write(lease, "", duration=1)
                    log.info("released the lease %s", self._name)
        except (ApiError, TimeoutError) as error:
            why = str(error) or "no response"
            log.warning("cannot release the lease %s; other candidates wait until it expires: %s", self._name, why)

    async def _try_to_write(self, check: Callable[[Object], bool]) -> bool:
        """Read, check and write the record; return whether this process now holds the lease until `_deadline`."""
        try:
            lease = await self._read()
            if not check(lease["spec"] if lease else {}):
                return False
            sent = self._now()
            self._observe(await self._write(lease, self._identity, self._times.duration))
        except ApiError as error:
            if error.code != 409:  # another candidate wrote first
                self._log_error(f"{error.code or 'no response'}: {error}")
            return False
        self._deadline, self._last_error = sent + self._times.renew, ""
        return True

    def _may_take(self, record: Object) -> bool:
        if self._holder(record) in ("", self._identity):
            return True
        age = self._now() - self._changed_at
        return age >= (record.get("leaseDurationSeconds") or self._times.duration)

    def _must_be_holder(self, record: Object) -> bool:
        if (holder := self._holder(record)) != self._identity:
            now = f"its holder is {holder}" if holder else "it has no holder"
            raise LeaseLost(f"the lease {self._name} was lost: {now}")
        return True

    async def _read(self) -> Object | None:
        """Read the Lease; return None if it does not exist."""
        try:
            lease = await self._api.request("GET", self._path, timeout_seconds=self._times.request_timeout)
        except ApiError as error:
            if error.code != 404:
                raise
            self._observe({})
            return None
        lease.setdefault("spec", {})
        self._observe(lease)
        return lease

    async def _write(self, lease: Object | None, holder: str, duration: int) -> Object:
        """Create or replace the Lease and return it.

        Raises:
            ApiError: with code 409 if another candidate wrote first.
        """
        old = lease["spec"] if lease else {}
        now = format_micro_time(utc_now())
        changes_holder = self._holder(old) != holder
        record = {
            **old,
            "holderIdentity": holder,
            "leaseDurationSeconds": duration,
            "acquireTime": now if changes_holder else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": old.get("leaseTransitions", 0)
            + (changes_holder and holder != "" and lease is not None),
        }
        kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        metadata = lease["metadata"] if lease else self._metadata
        verb, path = ("PUT", self._path) if lease else ("POST", self._collection)
        body = {**kind, "metadata": metadata, "spec": record}
        return await self._api.request(verb, path, body, timeout_seconds=self._times.request_timeout)

    def _observe(self, lease: Object) -> None:
        """Remember the record, and when it last changed."""
        record = lease.get("spec", {})
        if record != self._record:
            if (holder := self._holder(record)) not in ("", self._identity, self._holder(self._record)):
                log.info("standby: the holder of the lease %s is %s", self._name, holder)
            self._record, self._changed_at = record, self._now()

    def _log_error(self, error: str) -> None:
        """Log an error once, however often it repeats."""
        if error != self._last_error:
            log.warning("cannot read or write the lease %s: %s", self._name, error)
        self._last_error = error

    async def _pause(self) -> None:
        await asyncio.sleep(self._times.retry * (1 + 0.2 * self._jitter()))

    @staticmethod
    def _holder(record: Object) -> str:
        return record.get("holderIdentity") or ""

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
