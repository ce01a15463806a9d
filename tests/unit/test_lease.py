"""Leader election: who may lead, for how long, and that never two do."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import cycle, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import clock
from trainyard_operator.kube.api import ApiError
from trainyard_operator.kube.lease import TIMES, Lease, LeaseLost

Object = dict[str, Any]
PATH = "/apis/coordination.k8s.io/v1/namespaces/system/leases"
SLOWEST = TIMES.retry * 1.2
"""The longest pause between two attempts."""


@dataclass
class RequestOutcome:
    """What becomes of one request."""

    way: float = 0.0
    """Seconds until it reaches the server, if it does."""
    back: float = 0.0
    """Seconds that the answer takes."""
    arrives: bool = True
    answered: bool = True
    code: int = 0
    """With this answer the server refuses it."""


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Server:
    """An API server with one Lease, and a network that loses and delays."""

    stored: Object | None = None
    version: int = 0
    outcomes: Callable[[], RequestOutcome] = RequestOutcome
    requests: list[tuple[float, str]] = field(default_factory=list)
    history: list[Object] = field(default_factory=list)
    """Each record that was stored."""
    underway: set["asyncio.Task[tuple[int, Object]]"] = field(default_factory=set)

    async def request(self, verb: str, path: str, body: Any = None, *, timeout_seconds: float) -> Object:
        """As `KubeApi.request`."""
        self.requests.append((now(), verb))
        return await self.transmit(self.outcomes(), verb, path, body, timeout_seconds)

    async def transmit(
        self, outcome: RequestOutcome, verb: str, path: str, body: Any, timeout_seconds: float
    ) -> Object:
        """A request that was sent arrives even if its sender does not wait for the response any more."""
        task = asyncio.create_task(self._serve(outcome, verb, path, body))
        self.underway.add(task)
        task.add_done_callback(self.underway.discard)
        try:
            async with asyncio.timeout(timeout_seconds):
                code, answer = await asyncio.shield(task)
                if not (outcome.arrives and outcome.answered):
                    await asyncio.sleep(1000)
                await asyncio.sleep(outcome.back)
        except TimeoutError:
            raise ApiError(0, "NoAnswer", "TimeoutError") from None
        if code >= 300:
            raise ApiError(code, "", f"HTTP {code}")
        return answer

    async def _serve(self, outcome: RequestOutcome, verb: str, path: str, body: Any) -> tuple[int, Object]:
        await asyncio.sleep(outcome.way)
        if not outcome.arrives or outcome.code:
            return outcome.code, {}
        assert path == (PATH if verb == "POST" else f"{PATH}/trainyard")
        if verb == "GET":
            return (200, _copy(self.stored)) if self.stored else (404, {})
        if verb == "POST" and self.stored:
            return 409, {}
        if verb == "PUT" and (not self.stored or body["metadata"]["resourceVersion"] != str(self.version)):
            return 409, {}
        return 201, self.store(body["spec"], body["metadata"])

    def store(self, spec: Object, metadata: Object | None = None) -> Object:
        """Write a record; by hand, if there is no request."""
        self.version += 1
        known = metadata or (self.stored or {}).get("metadata", {"name": "trainyard"})
        self.stored = {"metadata": {**known, "resourceVersion": str(self.version)}, "spec": dict(spec)}
        self.history.append(dict(spec))
        return _copy(self.stored)

    @property
    def holder(self) -> str:
        return str(self.stored["spec"]["holderIdentity"]) if self.stored else ""

    def candidate(self, name: str, jitter: Callable[[], float] = lambda: 1.0) -> Lease:
        return Lease(self, "system", "trainyard", name, jitter=jitter)  # type: ignore[arg-type]


def _copy(lease: Object) -> Object:
    return {"metadata": dict(lease["metadata"]), "spec": dict(lease["spec"])}


def play(scenario: Callable[[Server], Coroutine[Any, Any, None]]) -> None:
    clock.run(scenario(Server()))


async def hold_for(lease: Lease, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await lease.hold()


# --- to take it -------------------------------------------------------------------------------------------------


def test_the_first_candidate_creates_the_lease_and_leads_at_once() -> None:
    async def scenario(server: Server) -> None:
        lease = server.candidate("a")
        await lease.acquire()
        assert now() == 0
        assert not lease.is_standby
        assert server.stored is not None
        record = server.stored["spec"]
        assert (record["holderIdentity"], record["leaseDurationSeconds"], record["leaseTransitions"]) == ("a", 15, 0)
        assert record["acquireTime"] == record["renewTime"]
        written = datetime.fromisoformat(record["renewTime"])
        assert record["renewTime"] == written.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "a MicroTime, in UTC"
        assert abs((datetime.now(written.tzinfo) - written).total_seconds()) < 60
        assert server.stored["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "trainyard"}

    play(scenario)


def test_it_is_renewed_every_retry_period_and_nothing_else_of_it_changes() -> None:
    async def scenario(server: Server) -> None:
        server.store({"holderIdentity": "", "leaseTransitions": 4, "strategy": "x"}, {"annotations": {"mine": "1"}})
        lease = server.candidate("a")
        await lease.acquire()
        await hold_for(lease, 60)
        times = [at for at, verb in server.requests if verb == "PUT"]
        assert [b - a for a, b in pairwise(times)] == pytest.approx([SLOWEST] * 24)
        kept = {
            (r["holderIdentity"], r["acquireTime"], r["leaseTransitions"], r["strategy"]) for r in server.history[1:]
        }
        assert len(kept) == 1
        assert {r["leaseTransitions"] for r in server.history[1:]} == {5}
        assert server.stored is not None
        assert server.stored["metadata"]["annotations"] == {"mine": "1"}

    play(scenario)


def test_an_attempt_is_made_at_other_moments_by_each_candidate() -> None:
    async def scenario(server: Server) -> None:
        server.store({"holderIdentity": "x"})
        waiting = asyncio.create_task(server.candidate("a", iter((0.0, 0.5, 1.0, 0.0)).__next__).acquire())
        await asyncio.sleep(7)
        waiting.cancel()
        assert [at for at, _ in server.requests] == pytest.approx([0, 2.0, 4.2, 6.6])

    play(scenario)


@pytest.mark.parametrize("years", [-10, 10])
def test_a_record_expires_by_how_long_it_was_seen_unchanged_and_not_by_the_times_in_it(years: int) -> None:
    async def scenario(server: Server) -> None:
        renewed = f"{datetime.now().year + years}-01-01T00:00:00.000000Z"
        server.store(
            {"holderIdentity": "dead", "leaseDurationSeconds": 15, "renewTime": renewed, "leaseTransitions": 1}
        )
        lease = server.candidate("a")
        acquiring = asyncio.create_task(lease.acquire())
        await asyncio.sleep(14.9)
        assert (server.holder, lease.is_standby) == ("dead", True)
        await acquiring
        assert (server.holder, lease.is_standby) == ("a", False)
        assert TIMES.duration <= now() <= TIMES.duration + SLOWEST
        assert server.history[-1]["leaseTransitions"] == 2

    play(scenario)


def test_a_record_that_changes_does_not_expire() -> None:
    async def scenario(server: Server) -> None:
        acquiring = asyncio.create_task(server.candidate("a").acquire())
        for tick in range(10):
            server.store({"holderIdentity": "alive", "leaseDurationSeconds": 15, "renewTime": str(tick)})
            await asyncio.sleep(14)
        assert not acquiring.done()
        await acquiring
        assert now() > 9 * 14 + TIMES.duration

    play(scenario)


def test_a_candidate_waits_as_long_as_the_record_says() -> None:
    async def scenario(server: Server) -> None:
        server.store({"holderIdentity": "patient", "leaseDurationSeconds": 60})
        await server.candidate("a").acquire()
        assert 60 <= now() <= 60 + SLOWEST

    play(scenario)


def test_a_process_takes_the_lease_of_its_own_dead_predecessor_at_once() -> None:
    async def scenario(server: Server) -> None:
        await server.candidate("pod").acquire()
        await server.candidate("pod").acquire()
        assert now() == 0
        assert server.history[-1]["leaseTransitions"] == 0

    play(scenario)


def test_of_two_candidates_the_faster_one_gets_a_free_lease() -> None:
    async def scenario(server: Server) -> None:
        server.outcomes = iter(
            [
                RequestOutcome(),
                RequestOutcome(),
                RequestOutcome(way=0.2),
                RequestOutcome(way=0.1),
                *[RequestOutcome()] * 9,
            ]
        ).__next__
        tasks = [asyncio.create_task(server.candidate(name).acquire()) for name in ("slow", "fast")]
        await asyncio.sleep(1)
        assert [task.done() for task in tasks] == [False, True]
        assert server.holder == "fast"
        tasks[0].cancel()

    play(scenario)


@pytest.mark.parametrize(
    "outcome",
    [RequestOutcome(code=403), RequestOutcome(code=500), RequestOutcome(arrives=False), RequestOutcome(answered=False)],
)
def test_a_candidate_keeps_trying_and_logs_an_error_once(
    outcome: RequestOutcome, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: Server) -> None:
        server.outcomes = lambda: outcome
        acquiring = asyncio.create_task(server.candidate("a").acquire())
        await asyncio.sleep(60)
        assert not acquiring.done()
        server.outcomes = RequestOutcome
        await acquiring

    play(scenario)
    assert len([r for r in caplog.records if "cannot read or write the lease system/trainyard" in r.message]) == 1


# --- to lose it -------------------------------------------------------------------------------------------------


async def _lost_after(server: Server, lease: Lease, seconds: float) -> tuple[float, str]:
    """Seconds from the last renewal that was sent, until the holder gives up; and why."""
    await lease.acquire()
    await hold_for(lease, seconds)
    last = max(at for at, verb in server.requests if verb in ("PUT", "POST"))
    with pytest.raises(LeaseLost) as lost:
        await lease.hold()
    return now() - last, str(lost.value)


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (RequestOutcome(code=500), "500: HTTP 500"),
        (RequestOutcome(arrives=False), "no response: TimeoutError"),
        (RequestOutcome(back=60), "no response: TimeoutError"),
        (RequestOutcome(code=409), "no response"),
    ],
)
def test_a_holder_that_cannot_renew_gives_up_in_time(outcome: RequestOutcome, why: str) -> None:
    async def scenario(server: Server) -> None:
        lease = server.candidate("a")
        outcomes = RequestOutcome
        server.outcomes = lambda: outcome if now() > 20 else outcomes()
        after, words = await _lost_after(server, lease, 20)
        assert after == pytest.approx(TIMES.renew)
        assert words == f"the lease system/trainyard could not be renewed for 10 s: {why}"

    async def reading_works(server: Server) -> None:
        """GET is answered and PUT is not."""
        lease, reads = server.candidate("a"), iter([RequestOutcome(), outcome] * 99)
        server.outcomes = lambda: next(reads) if now() > 20 else RequestOutcome()
        after, _ = await _lost_after(server, lease, 20)
        assert after <= TIMES.renew

    play(scenario)
    play(reading_works)


def test_a_request_that_hangs_for_ever_does_not_outlive_the_deadline() -> None:
    """Whatever the client does with the time that it was given."""

    class Hanging(Server):
        async def request(self, verb: str, path: str, body: Any = None, *, timeout_seconds: float) -> Object:
            return await super().request(verb, path, body, timeout_seconds=timeout_seconds if now() < 5 else 1000)

    async def scenario() -> None:
        server = Hanging()
        server.outcomes = lambda: RequestOutcome(arrives=now() < 5)
        after, _ = await _lost_after(server, server.candidate("a"), 5)
        assert after == pytest.approx(TIMES.renew)

    clock.run(scenario())


def test_a_holder_survives_what_is_shorter_than_its_deadline() -> None:
    async def scenario(server: Server) -> None:
        lease = server.candidate("a")
        await lease.acquire()
        server.outcomes = lambda: RequestOutcome(arrives=not 10 < now() % 30 < 15)
        await hold_for(lease, 300)
        assert server.holder == "a"
        assert len({record["acquireTime"] for record in server.history}) == 1

    play(scenario)


@pytest.mark.parametrize(("holder", "words"), [("b", "its holder is b"), ("", "it has no holder")])
def test_a_holder_whose_lease_was_taken_stops_at_its_next_renewal(holder: str, words: str) -> None:
    async def scenario(server: Server) -> None:
        lease = server.candidate("a")
        await lease.acquire()
        server.store({"holderIdentity": holder, "leaseDurationSeconds": 15})
        with pytest.raises(LeaseLost, match=words):
            await lease.hold()
        assert now() <= SLOWEST
        await lease.release()
        assert server.holder == holder, "a lease of another holder is left alone"

    play(scenario)


def test_a_holder_whose_lease_was_deleted_stops() -> None:
    async def scenario(server: Server) -> None:
        lease = server.candidate("a")
        await lease.acquire()
        server.stored = None
        with pytest.raises(LeaseLost, match="it has no holder"):
            await lease.hold()
        await lease.release()
        assert server.stored is None
        await server.candidate("b").acquire()
        assert server.holder == "b"

    play(scenario)


# --- to leave it ------------------------------------------------------------------------------------------------


def test_a_lease_that_is_released_is_free_at_once() -> None:
    async def scenario(server: Server) -> None:
        first, second = server.candidate("a"), server.candidate("b")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        await hold_for(first, 20)
        await first.release()
        released = now()
        assert server.history[-1]["holderIdentity"] == ""
        assert server.history[-1]["leaseDurationSeconds"] == 1
        await waiting
        assert now() - released <= SLOWEST
        assert (server.holder, server.history[-1]["leaseTransitions"]) == ("b", 1)

    play(scenario)


def test_a_candidate_that_is_not_the_holder_releases_nothing() -> None:
    async def scenario(server: Server) -> None:
        await server.candidate("a").acquire()
        await server.candidate("b").release()
        assert server.holder == "a"

    play(scenario)


def test_a_candidate_that_is_stopped_while_its_first_write_is_on_its_way_leaves_no_lease_behind() -> None:
    async def scenario(server: Server) -> None:
        server.outcomes = lambda: RequestOutcome(back=1.0)
        lease = server.candidate("a")
        acquiring = asyncio.create_task(lease.acquire())
        await asyncio.sleep(1.5)
        acquiring.cancel()
        await asyncio.gather(acquiring, return_exceptions=True)
        assert server.holder == "a"
        await lease.release()
        assert server.holder == ""

    play(scenario)


@pytest.mark.parametrize("outcome", [RequestOutcome(code=500), RequestOutcome(arrives=False)])
def test_a_lease_that_cannot_be_released_does_not_keep_the_operator_from_ending(
    outcome: RequestOutcome, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: Server) -> None:
        lease = server.candidate("a")
        await lease.acquire()
        server.outcomes = lambda: outcome
        await lease.release()
        assert now() <= TIMES.request_timeout

    play(scenario)
    assert "cannot release the lease system/trainyard; other candidates wait until it expires" in caplog.text


# --- never two --------------------------------------------------------------------------------------------------

OUTCOMES = [
    RequestOutcome(),
    RequestOutcome(arrives=False),
    RequestOutcome(answered=False),
    RequestOutcome(code=409),
    RequestOutcome(code=500),
]
OUTCOMES += [
    RequestOutcome(way=way, back=back) for way, back in ((0.05, 0.05), (3, 0), (0, 3), (1.5, 1.5), (20, 0), (20, 20))
]
OutcomeSchedule = list[tuple[float, RequestOutcome]]
"""For so many seconds, what becomes of the requests of one pod; after that all is well."""
weathers = st.lists(st.tuples(st.sampled_from([1.0, 5.0, 13.0, 30.0]), st.sampled_from(OUTCOMES)), max_size=8)


@dataclass
class Link:
    """The network between one pod and the server."""

    server: Server
    schedule: OutcomeSchedule

    @property
    def calm_from(self) -> float:
        """When the last of the trouble has begun and ended, with the requests that were underway."""
        return sum(seconds for seconds, _ in self.schedule) + 40

    async def request(self, verb: str, path: str, body: Any = None, *, timeout_seconds: float) -> Object:
        end = 0.0
        for seconds, outcome in self.schedule:
            end += seconds
            if now() < end:
                return await self.server.transmit(outcome, verb, path, body, timeout_seconds)
        return await self.server.transmit(RequestOutcome(), verb, path, body, timeout_seconds)


@dataclass
class Elections:
    """Pods whose operators come, lead, lose, leave and die; it is noted who takes itself for the leader."""

    jitter: Callable[[], float]
    ends: Callable[[], tuple[float, bool]]
    """Of a leader: after how many seconds, and whether it has time to release the lease."""
    believers: set[str] = field(default_factory=set)
    ended: float = 0.0
    """When the last reign did."""

    async def pod(self, link: Link, name: str) -> None:
        """One process after the other, all with the pod's name."""
        while True:
            lease = Lease(link, "system", "trainyard", name, jitter=self.jitter)  # type: ignore[arg-type]
            seconds, clean = self.ends()
            try:
                await lease.acquire()
                await self._lead(lease, name, seconds)
            except LeaseLost:
                clean = True
            if clean:
                await lease.release()
            await asyncio.sleep(0.3)

    async def _lead(self, lease: Lease, name: str, seconds: float) -> None:
        assert not self.believers, f"{name} leads, and so does {self.believers}"
        self.believers.add(name)
        try:
            await hold_for(lease, seconds)
        finally:
            self.believers.remove(name)
            self.ended = now()


@settings(deadline=None, max_examples=200)
@given(
    storms=st.lists(weathers, min_size=2, max_size=3),
    ends=st.lists(st.tuples(st.sampled_from([1.0, 30.0, 1000.0]), st.booleans()), min_size=1, max_size=5),
    jitter=st.lists(st.floats(0, 1), min_size=1, max_size=7),
)
def test_there_are_never_two_leaders_and_there_is_one_after_the_faults(
    storms: list[OutcomeSchedule], ends: list[tuple[float, bool]], jitter: list[float]
) -> None:
    async def scenario(server: Server) -> None:
        links = [Link(server, schedule) for schedule in storms]
        elections = Elections(cycle(jitter).__next__, cycle(ends).__next__)
        async with asyncio.TaskGroup() as group:
            pods = [group.create_task(elections.pod(link, f"pod-{number}")) for number, link in enumerate(links)]
            await asyncio.sleep(max(link.calm_from for link in links) + TIMES.duration + 2 * SLOWEST)
            assert elections.believers or now() - elections.ended < TIMES.duration + 2 * SLOWEST, "there is no leader"
            for pod in pods:
                pod.cancel()

    play(scenario)
