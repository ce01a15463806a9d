"""What one pod says, with a real operator: it is reported by its own job, which goes on, and so does the operator."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.builders import make_manifest, trainer_spec
from tests.support import kubelet
from tests.support.fake_kubelet import end_all, now, report, run_all
from tests.support.kube import Api, ApiRefusal, Namespace, eventually
from tests.support.operator import OperatorProcess
from trainyard.time import utc_now

pytestmark = pytest.mark.usefixtures("operator")


@asynccontextmanager
async def serving(page: str) -> AsyncIterator[tuple[int, list[str]]]:
    """Serve a page at each path; yield the port and the paths that were asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text=page)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (
            'trainyard_straggler_ratio{rank="inf"} 2\n',
            "trainyard_straggler_ratio has a label rank that must be a number",
        ),
        ("trainyard_eval_" + "x" * 900_000 + " 1\n", "a line has more than 1024 bytes"),
        ('trainyard_loss{a="' + '\\"' * 450_000 + '"} 1\n', "a line has more than 1024 bytes"),
        ("trainyard_planned_steps 1e30\n", "trainyard_planned_steps is 1e+30, not a count"),
    ],
    ids=["a rank that is not finite", "a name of 900 kB", "a label of 900 kB", "10^30 steps"],
)
async def test_a_hostile_page_is_reported_by_its_own_job(
    namespace: Namespace, operator: OperatorProcess, page: str, problem: str
) -> None:
    async with serving("trainyard_steps_total 50\n" + page) as (port, asked):
        await namespace.create_job(make_manifest(replicas=1, metrics={"port": port, "path": "/own"}))
        await namespace.has_pods("job-1-0")
        # Anybody who may edit pods may change the annotations: they must not stop the operator, nor send it elsewhere.
        annotations = {"prometheus.io/port": "abc", "prometheus.io/path": f"@127.0.0.1:{port}/latest/meta-data"}
        await namespace.api.patch(namespace.core("pods", "job-1-0"), {"metadata": {"annotations": annotations}})
        await report(namespace, "job-1-0", kubelet.running(now(), ip="127.0.0.1"))
        condition = await namespace.has_condition("Degraded", "True", "MetricsRefused")
        assert condition["message"].startswith(f"metrics page of pod job-1-0: {problem}")
        body = await namespace.job()
        assert body["status"]["progress"]["step"] == 50, "the rest of the page counts"
        assert len(json.dumps(body)) < 10_000
        assert set(asked) == {"/own"}
    await end_all(namespace, "job-1-0")
    await namespace.has_phase("Succeeded")
    assert operator.process.poll() is None
    assert (await operator.page("/healthz"))[0] == 200


async def test_final_figures_of_any_kind_do_not_keep_a_job_from_ending(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(replicas=1, trainer=trainer_spec()))
    await namespace.has_pods("job-1-0")
    await run_all(namespace, "job-1-0")
    await namespace.has_phase("Running")
    metrics = '{"perplexity": Infinity, "loss": NaN, "f1": 0.5, "%s": 1}' % ("x" * 200)
    await end_all(namespace, "job-1-0", message='{"progress": {"step": 9, "metrics": ' + metrics + "}}")
    status = await namespace.has_phase("Succeeded")
    assert status["progress"]["metrics"] == {"f1": 0.5}


async def test_the_crd_limits_the_names_of_metrics_and_takes_what_the_operator_writes(
    namespace: Namespace, api: Api
) -> None:
    await namespace.create_job(make_manifest(suspend=True, metrics={}))
    await namespace.has_phase("Suspended")

    async def put(metrics: dict[str, float]) -> None:
        progress = {"attempt": 1, "step": 1, "metrics": metrics, "updatedAt": utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")}
        await api.patch(namespace.jobs("job", "status"), {"status": {"progress": progress}})

    for metrics in ({"x" * 64: 1.0}, {f"m{i}": 1.0 for i in range(33)}):
        with pytest.raises(ApiRefusal, match="metrics"):
            await put(metrics)
    await put({("x" * 61) + f"{i:02}": 1.0 for i in range(32)})

    async def check() -> None:
        assert len((await namespace.job())["status"]["progress"]["metrics"]) == 32

    await eventually(check)
