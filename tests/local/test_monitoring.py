"""Every alert, from the metrics of trainer and operator through a real Prometheus to a real Alertmanager.

In the second tier, because other tests prove the same rules for each change: tests/monitoring checks each alert with
promtool, and tests/e2e/test_alerts.py provokes each one by a real fault on a node, down to Alertmanager.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
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
from trainyard_operator.parts import Part

FACTOR = 1 / 75
"""A day is 19 minutes, 15 minutes are 12 s, and two minutes 1.6 s: three scrapes."""
CALM = 10.0
"""Seconds without problems at first: the history that a job is compared with."""
TIMEOUT_SECONDS = 240.0
"""The test takes less than a minute on an idle machine."""


@dataclass
class Targets:
    """All scenarios and operators, and the pages that Prometheus scrapes."""

    cache: Cache = field(default_factory=Cache)
    queues: dict[str, WorkQueue[Key]] = field(default_factory=dict)
    operators: dict[str, OperatorMetrics] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    """Operators that do not respond."""
    scenarios: list[AlertScenario] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scenarios = [scenario(self.cache) for scenario in SCENARIOS]
        for name in ("system", "spare", "down", "leaderless", "stuck", "failing", "late"):
            self.queues[name] = WorkQueue[Key]()
            # Only one of them has jobs.
            cache = self.cache if name == "system" else Cache()
            self.operators[name] = OperatorMetrics(cache, self.queues[name])
            self.operators[name].leader.set(name != "spare")
        self.gone.add("late")

    def page(self, kind: str, name: str) -> CollectorRegistry | None:
        """Return the page of a target; None if it does not respond."""
        if kind == "operator":
            return None if name in self.gone else self.operators[name].registry
        return next(scenario for scenario in self.scenarios if scenario.name == name).page

    def targets(self) -> dict[str, dict[str, str]]:
        """Return the labels of all targets but the operator that starts late, by path."""
        found = {f"/operator/{name}": {"namespace": name, "pod": name} for name in self.operators if name != "late"}
        found["/operator/spare"]["namespace"] = "system"  # the namespace of the leader
        for scenario in self.scenarios:
            found[f"/worker/{scenario.name}"] = {"namespace": NAMESPACE, "pod": f"{scenario.name}-1-0"}
        return found

    def expected(self) -> set[frozenset[tuple[str, str]]]:
        """Return the labels of the alerts that must fire; no others may."""
        found: list[dict[str, str]] = [
            {"alertname": "TrainyardOperatorDown", "namespace": "down"},
            {"alertname": "TrainyardOperatorNoLeader", "namespace": "leaderless"},
            {"alertname": "TrainyardOperatorQueueStuck", "namespace": "stuck"},
            {"alertname": "TrainyardOperatorPartFailing", "namespace": "failing", "part": "progress"},
            {"alertname": "TrainyardOperatorAbsent"},
        ]
        for scenario in self.scenarios:
            if scenario.alert:
                found.append(
                    {"alertname": scenario.alert, "namespace": NAMESPACE, "job_name": scenario.name, **scenario.extra}
                )
        assert {labels["alertname"] for labels in found} == set(ALERTS)
        return {frozenset({**labels, "severity": ALERTS[labels["alertname"]].severity}.items()) for labels in found}

    def break_down(self) -> None:
        """Cause all problems at once."""
        for scenario in self.scenarios:
            scenario.break_down()
        self.gone.add("down")
        self.operators["leaderless"].leader.set(0)
        self.queues["stuck"].add(("ml", "job"))
        self.operators["failing"].count_failure(Part.PROGRESS)

    async def recover(self) -> None:
        """Remove all problems."""
        for scenario in self.scenarios:
            scenario.recover()
        self.gone.clear()
        self.operators["leaderless"].leader.set(1)
        self.queues["stuck"].done(await self.queues["stuck"].get())

    async def run(self) -> None:
        """Run the scenarios until cancelled: healthy first, then with their problems."""
        loop = asyncio.get_running_loop()
        start, broken = loop.time(), False
        while True:
            age = loop.time() - start
            if age > CALM and not broken:
                broken = True
                self.break_down()
            for scenario in self.scenarios:
                if broken:
                    scenario.later(age - CALM)
                scenario.tick(age)
            await asyncio.sleep(TICK)


@asynccontextmanager
async def serve(targets: Targets) -> AsyncIterator[str]:
    """Serve the pages from the thread of the event loop, as the operator does; yield the address."""

    async def answer(request: web.Request) -> web.Response:
        page = targets.page(request.match_info["kind"], request.match_info["name"])
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
class AlertHistory:
    """Alerts that Alertmanager has received."""

    now: set[frozenset[tuple[str, str]]] = field(default_factory=set)
    ever: set[frozenset[tuple[str, str]]] = field(default_factory=set)

    async def update(self, alertmanager: Alertmanager) -> None:
        """Read the firing alerts."""
        alerts = await alertmanager.active()
        for alert in alerts:
            assert flaws(alert) == []
        self.now = {frozenset(alert["labels"].items()) for alert in alerts}
        self.ever |= self.now


@pytest.mark.extended
async def test_every_alert_reaches_alertmanager_and_resolves(tmp_path: Path) -> None:
    targets, history, rules = Targets(), AlertHistory(), rule_file(TIMING.scaled(FACTOR))
    late = {"/operator/late": {"namespace": "late", "pod": "late"}}
    async with serve(targets) as server:
        with (
            run_alertmanager(tmp_path / "alertmanager") as alertmanager,
            run_prometheus(tmp_path / "first", rules, alertmanager, server, targets.targets()),
            run_prometheus(tmp_path / "second", rules, alertmanager, server, late),
        ):
            running = asyncio.create_task(targets.run())
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    while targets.expected() - history.ever:
                        await history.update(alertmanager)
                        assert not running.done(), running.exception()
                        await asyncio.sleep(0.5)
                    await targets.recover()
                    while history.now:
                        await history.update(alertmanager)
                        await asyncio.sleep(0.5)
            except TimeoutError:
                missing = targets.expected() - history.ever
                raise AssertionError(f"never fired: {missing}; never resolved: {history.now}") from None
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
    assert history.ever == targets.expected()
