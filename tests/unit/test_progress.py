"""Progress: the table of metrics, the parser of metrics pages, and the poller."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.builders import NOW, make_job, make_pod, trainer_spec
from tests.support import kubelet
from tests.support.fake_cluster import FakeCluster, FakeClusterBackend
from trainyard.protocol.progress import Progress
from trainyard.protocol.worker_metrics import METRICS, WorkerMetric
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.progress import ProgressPoller, parse_progress, significant
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import Pod

PAGE = """\
# HELP trainyard_steps_total Optimizer steps done
# TYPE trainyard_steps_total counter
trainyard_steps_total{job_name="job",namespace="default"} 50.0
trainyard_planned_steps{job_name="job",namespace="default"} 200.0
trainyard_tokens_total{job_name="job",namespace="default"} 5000.0
trainyard_loss{job_name="job",namespace="default"} 2.3456789012
trainyard_learning_rate{job_name="job",namespace="default"} 0.0003
trainyard_grad_norm{job_name="job",namespace="default"} 1.5
trainyard_tokens_per_second{job_name="job",namespace="default"} 1000.0
trainyard_samples_per_second{job_name="job",namespace="default"} 4.0
process_cpu_seconds_total 3.0
"""


def test_progress_has_the_fields_of_the_table_and_three_derived_ones() -> None:
    fields = {name for metric in METRICS for name in (metric.field, metric.rank_field) if name}
    assert set(Progress.model_fields) == fields | {"eval_loss", "eta_seconds", "updated_at"}


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.field], ids=lambda metric: metric.name)
def test_field_has_type_and_description_of_its_metric(metric: WorkerMetric) -> None:
    assert metric.field is not None
    field = Progress.model_fields[metric.field]
    accepted = {"map": {"loss": 0.5}, "integer": 3, "number": 0.5}
    kind = "map" if metric.open_ended else "integer" if metric.integer else "number"
    assert Progress.model_validate({metric.field: accepted[kind]}).to_dict()
    if kind == "integer":
        with pytest.raises(ValidationError):
            Progress.model_validate({metric.field: 0.5})
    assert field.description == metric.help


def test_metric_names_are_unique_and_follow_prometheus_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("trainyard_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith("."), metric.name


def test_page_as_fields_of_the_status() -> None:
    progress = parse_progress(PAGE, attempt=3, now=NOW)
    assert progress is not None
    assert progress.to_dict() == {
        "attempt": 3,
        "step": 50,
        "totalSteps": 200,
        "loss": 2.34568,
        "learningRate": 0.0003,
        "gradNorm": 1.5,
        "tokensPerSecond": 1000.0,
        "samplesPerSecond": 4.0,
        "etaSeconds": 15.0,  # 150 steps of 100 tokens each, at 1,000 tokens per second
        "updatedAt": "2030-01-01T12:00:00Z",
    }


def test_evaluation_metrics_are_read_by_name() -> None:
    page = PAGE + "trainyard_eval_loss 0.25\ntrainyard_eval_accuracy 0.98328712\ntrainyard_eval_f1 NaN\n"
    progress = parse_progress(page, attempt=1, now=NOW)
    assert progress is not None
    assert progress.eval_loss == 0.25
    assert progress.metrics == {"accuracy": 0.983287, "loss": 0.25}


def test_more_evaluation_metrics_than_a_status_holds_are_a_value_error() -> None:
    page = PAGE + "".join(f"trainyard_eval_metric{i} 1\n" for i in range(33))
    with pytest.raises(ValueError, match="metrics"):
        parse_progress(page, attempt=1, now=NOW)


@pytest.mark.parametrize(
    "page", ["", "up 1\n", "trainyard_loss 1\n", "trainyard_steps_total NaN\n", "trainyard_steps_total +Inf\n"]
)
def test_page_without_a_step_count_has_no_progress(page: str) -> None:
    assert parse_progress(page, attempt=1, now=NOW) is None


def test_page_before_the_first_step_has_step_0() -> None:
    page = "trainyard_steps_total 0\ntrainyard_planned_steps 10\ntrainyard_tokens_per_second 5\n"
    progress = parse_progress(page, attempt=1, now=NOW)
    assert progress is not None
    assert (progress.step, progress.total_steps, progress.eta_seconds, progress.steps_made) == (0, 10, None, 0)


def test_steps_before_the_resumed_checkpoint_are_not_made_by_the_attempt() -> None:
    progress = parse_progress(PAGE + "trainyard_resumed_step 48\n", attempt=1, now=NOW)
    assert progress is not None
    assert (progress.step, progress.resumed_step, progress.steps_made) == (50, 48, 2)


def test_problems_with_checkpoints_are_omitted_while_0() -> None:
    for count, expected in ((0, None), (2, 2)):
        page = PAGE + f"trainyard_checkpoints_damaged {count}\ntrainyard_checkpoint_failures_total {count}\n"
        progress = parse_progress(page, attempt=1, now=NOW)
        assert progress is not None
        assert (progress.checkpoints_damaged, progress.checkpoint_failures) == (expected, expected)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_value_that_is_not_finite_is_left_out(value: str) -> None:
    page = (
        f"trainyard_steps_total 5\ntrainyard_loss {value}\ntrainyard_tokens_per_second {value}\ntrainyard_grad_norm 2\n"
    )
    progress = parse_progress(page + "trainyard_planned_steps 10\n", attempt=1, now=NOW)
    assert progress is not None
    assert (progress.step, progress.loss, progress.tokens_per_second, progress.grad_norm) == (5, None, None, 2.0)


@pytest.mark.parametrize(
    "page", ["<html>", "trainyard_loss many\n", "trainyard_steps_total -1\n", "trainyard_steps_total 1e300\n"]
)
def test_invalid_page_is_a_value_error(page: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the parser's
        parse_progress(page, attempt=1, now=NOW)


def test_eta_is_0_after_the_planned_steps() -> None:
    progress = parse_progress(PAGE.replace("} 200.0", "} 40.0"), attempt=1, now=NOW)
    assert progress is not None
    assert progress.eta_seconds == 0


@given(
    st.lists(st.sampled_from(["a", "trainyard_loss", *'{}"=,# \n1-é', "# TYPE", "\\", '{a="b"}', '{""', "1e999"])).map(
        "".join
    )
)
def test_any_page_raises_at_most_a_value_error(page: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_progress(page, attempt=1, now=NOW) is None


@given(st.floats(-1e307, 1e307).filter(lambda v: abs(v) > 1e-300), st.integers(1, 15))
def test_rounding_to_significant_digits(value: float, digits: int) -> None:
    rounded = significant(value, digits)
    assert math.isclose(rounded, value, rel_tol=10.0 ** (1 - digits))
    assert significant(rounded, digits) == rounded


# --- the poller -----------------------------------------------------------------------------------------------


class Backend(FakeClusterBackend):
    url: str | None = None

    def __init__(self) -> None:
        super().__init__(FakeCluster())
        self.asked: list[str] = []
        self.asked_again = asyncio.Event()

    def metrics_url(self, pod: Pod) -> str | None:
        self.asked.append(pod["metadata"]["name"])
        if len(self.asked) > 1:
            self.asked_again.set()
        return self.url


@asynccontextmanager
async def serving(text: str, status: int = 200) -> AsyncIterator[str]:
    """Serve a metrics page."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=text, status=status)

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    finally:
        await runner.cleanup()


def running_job(**spec: Any) -> TrainingJob:
    condition = {"type": "Running", "status": "True", "reason": "r", "lastTransitionTime": kubelet.zulu(NOW)}
    return make_job(status={"attempt": 2, "conditions": [condition]}, **spec)


async def poll(job: TrainingJob, url: str | None, *, until: str) -> tuple[Cache, list[str]]:
    """Run the poller until a page is in the cache, or until the URL of a pod was requested twice."""
    cache, queue = Cache(), WorkQueue[Key]()
    cache.put_job(job)
    for index in range(2):
        cache.put_pod(make_pod(job, index, attempt=2, status=kubelet.running(NOW)))
    backend = Backend()
    backend.url = url
    poller = asyncio.create_task(ProgressPoller(cache, queue, backend, lambda: NOW, interval=0.01).run())
    try:
        async with asyncio.timeout(20):
            await (queue.get() if until == "queued" else backend.asked_again.wait())
    finally:
        poller.cancel()
        await asyncio.gather(poller, return_exceptions=True)
    return cache, backend.asked


async def test_progress_of_rank_0_is_cached_and_its_job_queued() -> None:
    async with serving(PAGE) as url:
        cache, asked = await poll(running_job(trainer=trainer_spec()), url, until="queued")
    entry = cache.get(("default", "job"))
    assert entry is not None
    assert entry.progress is not None
    assert (entry.progress.step, entry.progress.attempt) == (50, 2)
    assert set(asked) == {"job-2-0"}


@pytest.mark.parametrize(
    ("text", "status"),
    [("<html>", 200), ("gone", 404), ("moved", 307), ("trainyard_steps_total 1e300\n", 200), ("#" * 2_000_000, 200)],
    ids=["no metrics", "not found", "moved", "number too large", "too long"],
)
async def test_worker_with_an_invalid_answer_is_polled_again(text: str, status: int) -> None:
    async with serving(text, status) as url:
        cache, _ = await poll(running_job(trainer=trainer_spec()), url, until="asked")
    entry = cache.get(("default", "job"))
    assert entry is not None
    assert entry.progress is None


async def test_worker_without_an_answer_is_polled_again() -> None:
    async with serving(PAGE) as url:
        pass
    cache, _ = await poll(running_job(trainer=trainer_spec()), url, until="asked")
    entry = cache.get(("default", "job"))
    assert entry is not None
    assert entry.progress is None


@pytest.mark.parametrize("kind", ["your own program", "a job that is not running"])
async def test_jobs_without_metrics_are_not_polled(kind: str) -> None:
    job = running_job() if kind == "your own program" else make_job(trainer=trainer_spec())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await poll(job, None, until="asked")
