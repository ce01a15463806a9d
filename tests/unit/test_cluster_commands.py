"""What the commands for a cluster show, and what they make of its answers."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import RenderableType

from tests.builders import elastic, make_job, served, trainer_spec
from trainyard.job import TrainingJob
from trainyard.status import Condition
from trainyard_cli.cluster import tables
from trainyard_cli.cluster.client import ClusterProblem, Missing, _problem, parse
from trainyard_cli.cluster.logs import draw, pod_of_rank
from trainyard_cli.cluster.ranks import JobView, RankView
from trainyard_cli.cluster.top import picture_of
from trainyard_cli.output import screen
from trainyard_cli.report import StepReport, duration, plot, reports_in, status_table

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)


def shown(*parts: RenderableType) -> list[str]:
    console = screen()
    console.width = 160
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def running_job(**status: Any) -> TrainingJob:
    progress = {"attempt": 2, "step": 50, "totalSteps": 200, "loss": 2.5, "tokensPerSecond": 17000.4, "etaSeconds": 95}
    return make_job(
        trainer=trainer_spec(),
        status={
            "phase": "Running",
            "attempt": 2,
            "restarts": 1,
            "workers": {"desired": 2, "running": 2},
            "progress": progress | status.pop("progress", {}),
            "conditions": [
                {"type": kind, "status": value, "reason": "Why", "message": "because", "lastTransitionTime": at}
                for kind, value, at in (
                    ("Running", "True", "2030-01-01T11:59:00Z"),
                    ("Degraded", status.pop("degraded", "False"), "2030-01-01T11:00:00Z"),
                )
            ],
            **status,
        },
    )


def body_of(job: TrainingJob) -> dict[str, Any]:
    body = job.to_dict()
    body["metadata"]["creationTimestamp"] = (NOW - timedelta(seconds=125)).isoformat()
    return body


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m"), (61, "1m1s"), (3600, "1h"), (3723, "1h2m"), (90_000, "1d1h"), (86_401, "1d"), (-5, "0s")],
)
def test_a_time_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_list_has_a_line_for_each_job() -> None:
    jobs = [running_job(goodput={"ratio": 0.9, "accountedAt": NOW.isoformat()}), make_job("new"), running_job()]
    lines = shown(tables.job_table([body_of(job) for job in jobs], jobs, NOW))
    assert lines[1] == "job Running 50/200 2.5000 17,000 1m35s 2/2 1 90% 2m5s"
    assert lines[2] == "new Pending 0/2 0 2m5s"


def test_who_is_degraded_is_so_in_the_list() -> None:
    job = running_job(degraded="True")
    assert "Running (degraded)" in shown(tables.job_table([body_of(job)], [job], NOW, everywhere=True))[1]


def test_the_status_has_what_matters_now() -> None:
    job = running_job(progress={"mfu": 0.412, "checkpointStep": 40}, slowNodes=["node-7"])
    text = "\n".join(shown(status_table(job, NOW), tables.condition_table(job.status.conditions, NOW)))
    for part in ("MFU │ 41.2%", "ETA │ 1m35s", "checkpoint │ step 40", "avoided nodes │ node-7", "Running True 1m Why"):
        assert part in text


def test_a_group_that_has_shrunk_shows_its_size() -> None:
    job = make_job(replicas=3, **elastic(), status={"attempt": 2, "elastic": {"replicas": 2}})
    assert "workers │ 2 (of 3) x 1 ranks" in "\n".join(shown(status_table(job, NOW)))


def test_top_shows_each_rank_and_where_a_step_goes() -> None:
    rank = RankView(0, "job-2-0", "node-1", "Running", last_step=NOW.timestamp() - 3, compute=0.0021)
    slow = RankView(1, "job-2-1", "node-2", "Running", compute=0.0063, straggler=3.0)
    slow.memory = {"resident": 700 * 2**20, "allocated": 3 * 2**30, "peak": 4 * 2**30}
    view = JobView([rank, slow], 2, {"data": 0.1, "passes": 0.3, "update": 0.1, "evaluation": 0.0})
    lines = shown(*picture_of(running_job(), view, NOW.timestamp()))
    assert lines[0] == "job Running attempt 2 step 50/200 loss 2.5000 17,000 tokens/s ETA 1m35s"
    assert "a step takes 0.500 s on rank 0: data 20%, passes 60%, update 20%" in lines
    assert "0 job-2-0 node-1 Running 3s ago 2.10 ms" in lines
    assert "1 job-2-1 node-2 Running 6.30 ms 3.0 x 700 MiB 3.0 GiB 4.0 GiB" in lines
    assert lines[-1] == "and 2 pods more; Grafana shows all of them"


def test_the_pod_of_a_rank_is_that_of_the_current_group() -> None:
    job = make_job(workers={"procsPerWorker": 4}, status={"attempt": 3, "podAttempt": 2})
    assert [pod_of_rank(job, rank) for rank in (0, 3, 4, 7)] == ["job-2-0", "job-2-0", "job-2-1", "job-2-1"]
    with pytest.raises(ClusterProblem, match="--rank: job has the ranks 0 to 7; choose one"):
        pod_of_rank(job, 8)
    server = make_job(**served(), status={"attempt": 1})
    assert pod_of_rank(server, 2) == "job-1-server"
    with pytest.raises(ClusterProblem, match="job has no pods yet"):
        pod_of_rank(make_job(), 0)


@pytest.mark.parametrize(
    ("status", "message", "kind", "code", "words"),
    [
        (404, "", ClusterProblem, 3, "the cluster has no TrainingJobs; install it"),
        (404, 'pods "a" not found', Missing, 2, 'cannot look: pods "a" not found'),
        (403, "user x cannot list", ClusterProblem, 2, "user x cannot list; ask for that permission"),
        (401, "Unauthorized", ClusterProblem, 3, "log in anew"),
        (409, "already exists", ClusterProblem, 2, "delete it first"),
        (422, "spec: a\n must b", ClusterProblem, 2, "cannot look: spec: a must b"),
        (500, "etcd", ClusterProblem, 1, "cannot look: etcd"),
        (503, "", ClusterProblem, 1, "cannot look: HTTP 503"),
    ],
)
def test_each_answer_of_the_server_is_one_line_with_a_code(
    status: int, message: str, kind: type[ClusterProblem], code: int, words: str
) -> None:
    problem = _problem(status, json.dumps({"message": message}) if message else "404 page not found", "look")
    assert type(problem) is kind
    assert problem.code == code
    assert words in str(problem)
    assert "\n" not in str(problem)


def test_a_job_of_a_later_version_is_no_bug_of_ours() -> None:
    body = body_of(running_job())
    body["status"]["mood"] = "good"
    with pytest.raises(ClusterProblem, match=r"does not know its field status.mood; install the version"):
        parse(body)


def test_lines_that_are_no_reports_are_passed_over() -> None:
    report = {"attempt": 1, "step": 5, "loss": 2.0, "tokensPerSecond": 100}
    foreign = ['{"tokensPerSecond": 1', '{"tokensPerSecond": 1}', '"tokensPerSecond"', '{"tokensPerSecond": null}']
    lines = ["Traceback", json.dumps({"message": "x"}), json.dumps(report), *foreign, ""]
    assert [found.step for found in reports_in(lines)] == [5]


def test_a_loss_that_is_no_number_is_a_gap_in_the_plot(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"attempt": 1, "step": step, "tokensPerSecond": 100}) for step in (1, 2)]
    lines.append(json.dumps({"attempt": 2, "step": 2, "loss": 2.0, "tokensPerSecond": 100}))
    reports = list(reports_in(lines))
    assert [math.isfinite(report.loss) for report in reports] == [False, False, True]
    draw(make_job(), reports)
    assert "job: loss (nats)" in capfd.readouterr().out
    plot(make_job(), [*reports, StepReport(2, 3, math.inf, 100)], tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_words_of_events_and_conditions_are_shown_as_they_are() -> None:
    words = "[rank0]: lost at [/opt/pair.cc:534]"
    event = {"type": "Warning", "reason": "WorkerFailed", "message": words, "lastTimestamp": NOW.isoformat()}
    assert f"WorkerFailed {words}" in shown(tables.event_table([event], NOW))[1]
    condition = Condition(type="Failed", status="True", reason="Why", message=words, last_transition_time=NOW)
    assert words in shown(tables.condition_table([condition], NOW))[1]
