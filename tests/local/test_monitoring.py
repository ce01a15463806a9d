"""Every alert, from the instruments of trainer and operator through a real Prometheus to a real Alertmanager."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tests.monitoring.promtool import ALERTS
from tests.support.alert_scenarios import NAMESPACE, SCENARIOS, TICK, AlertScenario
from tests.support.alerting import Alertmanager, flaws, run_alertmanager, run_prometheus
from trainyard_monitoring.rule_file import rule_file
from trainyard_monitoring.timing import TIMING
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.metrics import OperatorMetrics

FACTOR = 1 / 75
"""A day is 19 minutes, 15 minutes are 12 s, and two minutes 1.6 s: three scrapes."""
CALM = 10.0
"""Seconds for which all is well at first: what a job is compared with."""
PATIENCE = 240.0
"""It takes less than a minute where not much else runs."""


@dataclass
class Stage:
    """Who plays, and the pages that Prometheus reads."""

    cache: Cache = field(default_factory=Cache)
    queues: dict[str, WorkQueue[Key]] = field(default_factory=dict)
    operators: dict[str, OperatorMetrics] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    """Operators that do not answer."""
    plays: list[AlertScenario] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plays = [play(self.cache) for play in SCENARIOS]
        for name in ("system", "spare", "down", "leaderless", "stuck", "late"):
            self.queues[name] = WorkQueue[Key]()
            # Only one of them has jobs.
            cache = self.cache if name == "system" else Cache()
            self.operators[name] = OperatorMetrics(cache, self.queues[name])
            self.operators[name].leader.set(name != "spare")
        self.gone.add("late")

    def page(self, kind: str, name: str) -> CollectorRegistry | None:
        """What a target tells; None if it does not answer."""
        if kind == "operator":
            return None if name in self.gone else self.operators[name].registry
        return next(play for play in self.plays if play.name == name).page

    def targets(self) -> dict[str, dict[str, str]]:
        """All but the operator that comes late."""
        found = {f"/operator/{name}": {"namespace": name, "pod": name} for name in self.operators if name != "late"}
        found["/operator/spare"]["namespace"] = "system"  # where another one leads
        for play in self.plays:
            found[f"/worker/{play.name}"] = {"namespace": NAMESPACE, "pod": f"{play.name}-1-0"}
        return found

    def expected(self) -> set[frozenset[tuple[str, str]]]:
        """Labels of every alert that must fire, and of no other."""
        found: list[dict[str, str]] = [
            {"alertname": "TrainyardOperatorDown", "namespace": "down"},
            {"alertname": "TrainyardOperatorNoLeader", "namespace": "leaderless"},
            {"alertname": "TrainyardOperatorQueueStuck", "namespace": "stuck"},
            {"alertname": "TrainyardOperatorAbsent"},
        ]
        for play in self.plays:
            if play.alert:
                found.append({"alertname": play.alert, "namespace": NAMESPACE, "job_name": play.name, **play.extra})
        assert {labels["alertname"] for labels in found} == set(ALERTS)
        return {frozenset({**labels, "severity": ALERTS[labels["alertname"]].severity}.items()) for labels in found}

    def trouble(self) -> None:
        """Everything goes wrong at once."""
        for play in self.plays:
            play.trouble()
        self.gone.add("down")
        self.operators["leaderless"].leader.set(0)
        self.queues["stuck"].add(("ml", "job"))

    async def mend(self) -> None:
        """And is mended."""
        for play in self.plays:
            play.mend()
        self.gone.clear()
        self.operators["leaderless"].leader.set(1)
        self.queues["stuck"].done(await self.queues["stuck"].get())

    async def play(self) -> None:
        """Calm, then trouble, for ever."""
        loop = asyncio.get_running_loop()
        began, troubled = loop.time(), False
        while True:
            age = loop.time() - began
            if age > CALM and not troubled:
                troubled = True
                self.trouble()
            for play in self.plays:
                if troubled:
                    play.later(age - CALM)
                play.tick(age)
            await asyncio.sleep(TICK)


@asynccontextmanager
async def serve(stage: Stage) -> AsyncIterator[str]:
    """Serve the pages, from the thread of the event loop, as the operator does; yields the address."""

    async def answer(request: web.Request) -> web.Response:
        page = stage.page(request.match_info["kind"], request.match_info["name"])
        if page is None:
            return web.Response(status=503)
        return web.Response(body=generate_latest(page), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/{kind}/{name}", answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Seen:
    """What Alertmanager has had so far."""

    now: set[frozenset[tuple[str, str]]] = field(default_factory=set)
    ever: set[frozenset[tuple[str, str]]] = field(default_factory=set)

    async def look(self, alertmanager: Alertmanager) -> None:
        """Look once more."""
        alerts = await alertmanager.active()
        for alert in alerts:
            assert flaws(alert) == []
        self.now = {frozenset(alert["labels"].items()) for alert in alerts}
        self.ever |= self.now


async def test_every_alert_reaches_alertmanager_and_resolves_and_no_other_does(tmp_path: Path) -> None:
    stage, seen, rules = Stage(), Seen(), rule_file(TIMING.scaled(FACTOR))
    late = {"/operator/late": {"namespace": "late", "pod": "late"}}
    async with serve(stage) as server:
        with (
            run_alertmanager(tmp_path / "alertmanager") as alertmanager,
            run_prometheus(tmp_path / "first", rules, alertmanager, server, stage.targets()),
            run_prometheus(tmp_path / "second", rules, alertmanager, server, late),
        ):
            playing = asyncio.create_task(stage.play())
            try:
                async with asyncio.timeout(PATIENCE):
                    while stage.expected() - seen.ever:
                        await seen.look(alertmanager)
                        assert not playing.done(), playing.exception()
                        await asyncio.sleep(0.5)
                    await stage.mend()
                    while seen.now:
                        await seen.look(alertmanager)
                        await asyncio.sleep(0.5)
            except TimeoutError:
                missing = stage.expected() - seen.ever
                raise AssertionError(f"never fired: {missing}; never resolved: {seen.now}") from None
            finally:
                playing.cancel()
                with suppress(asyncio.CancelledError):
                    await playing
    assert seen.ever == stage.expected()
