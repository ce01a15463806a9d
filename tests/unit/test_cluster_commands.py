"""What the commands on a cluster print, and how they treat its responses."""

import inspect
import json
import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import typer
from rich.console import RenderableType
from typer.core import TyperGroup
from typer.testing import CliRunner

from tests.builders import elastic, make_job, make_pod, served, trainer_spec
from tests.support import kubelet
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Condition
from trainyard_cli import entry
from trainyard_cli.cluster.client import parse_job
from trainyard_cli.cluster.errors import ClusterError, NotFoundError, UnavailableError, error_from_response
from trainyard_cli.cluster.log_streams import merge_lines
from trainyard_cli.cluster.pods import pod_of_rank
from trainyard_cli.cluster.ranks import JobView, RankView, read_ranks
from trainyard_cli.cluster.retry import Retry
from trainyard_cli.main import app
from trainyard_cli.output import stdout_console
from trainyard_cli.views import tables
from trainyard_cli.views.formatting import duration, progress_line, throughput
from trainyard_cli.views.plot import draw_plot, save_plot
from trainyard_cli.views.ranks import job_screen
from trainyard_cli.views.status import status_table
from trainyard_cli.views.step_reports import StepReport, parse_reports

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)


def shown(*parts: RenderableType) -> list[str]:
    console = stdout_console()
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


def table_job(**progress: Any) -> TrainingJob:
    trainer = trainer_spec(model={"name": "mlp"}, data={"source": "table", "builtin": "digits"})
    speed = {"attempt": 1, "step": 5, "tokensPerSecond": 105, "samplesPerSecond": 210, **progress}
    return make_job(trainer=trainer, status={"attempt": 1, "phase": "Running", "progress": speed})


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
    assert lines[1] == "job Running 50/200 2.5000 17,000 tokens/s 1m35s 2/2 1 90% 2m5s"
    assert lines[2] == "new Pending 0/2 0 2m5s"


def test_a_degraded_job_is_marked_in_the_list() -> None:
    job = running_job(degraded="True")
    assert "Running (degraded)" in shown(tables.job_table([body_of(job)], [job], NOW, all_namespaces=True))[1]


def test_the_status_shows_progress_nodes_and_conditions() -> None:
    job = running_job(progress={"mfu": 0.412, "checkpointStep": 40}, slowNodes=["node-7"])
    text = "\n".join(shown(status_table(job, NOW), tables.condition_table(job.status.conditions, NOW)))
    for part in ("MFU │ 41.2%", "ETA │ 1m35s", "checkpoint │ step 40", "avoided nodes │ node-7", "Running True 1m Why"):
        assert part in text


def test_the_status_of_a_private_run_shows_what_it_has_spent() -> None:
    trainer = trainer_spec(privacy={"epsilon": 3, "delta": 1e-5})
    status = running_job(progress={"epsilon": 1.2345}).status.to_dict()
    job = make_job(trainer=trainer, checkpoint={"volume": {"emptyDir": {}}}, status=status)
    assert "epsilon spent │ 1.234 of 3 (delta 1e-05)" in "\n".join(shown(status_table(job, NOW)))


def test_a_group_of_reduced_size_shows_both_sizes() -> None:
    job = make_job(replicas=3, **elastic(), status={"attempt": 2, "elastic": {"replicas": 2}})
    assert "workers │ 2 (of 3) x 1 rank" in "\n".join(shown(status_table(job, NOW)))


def test_top_shows_each_rank_and_how_a_step_is_divided() -> None:
    rank = RankView(0, "job-2-0", "node-1", "Running", last_step=NOW.timestamp() - 3, compute=0.0021)
    slow = RankView(1, "job-2-1", "node-2", "Running", compute=0.0063, straggler=3.0)
    slow.memory = {"resident": 700 * 2**20, "allocated": 3 * 2**30, "peak": 4 * 2**30}
    phases = {"data": 0.1, "passes": 0.3, "update": 0.1, "evaluation": 0.0}
    view = JobView([rank, slow], 2, phases, {"compute": 0.5, "overlap": 0.15, "communication": 0.25, "other": 0.1})
    lines = shown(*job_screen(running_job(), view, NOW.timestamp()))
    assert "some ranks have no metrics" not in "".join(lines)
    assert lines[0] == "job Running attempt 2 step 50/200 loss 2.5000 17,000 tokens/s ETA 1m35s"
    assert "a step takes 0.500 s on rank 0: data 20%, passes 60%, update 20%" in lines
    assert "communication: 25% of the step exposed, 15% overlapped with computation" in lines
    assert "0 job-2-0 node-1 Running 3s ago 2.10 ms" in lines
    assert "1 job-2-1 node-2 Running 6.30 ms 3.0 x 700 MiB 3.0 GiB 4.0 GiB" in lines
    assert lines[-1] == "2 pods omitted; the dashboards in Grafana show all"


def test_top_shows_why_ranks_have_no_metrics() -> None:
    view = JobView(
        [RankView(0, "job-2-0", "node-1", "Running")], 0, {}, problem="cannot read the metrics of pod job-2-0: no"
    )
    lines = shown(*job_screen(running_job(), view, NOW.timestamp()))
    assert lines[-1] == "some ranks have no metrics: cannot read the metrics of pod job-2-0: no"


class Pods:
    """A cluster with these pods and metrics pages."""

    def __init__(self, pods: list[dict[str, Any]], pages: dict[str, str | ClusterError]) -> None:
        self._pods, self._pages = pods, pages

    def list_pods(self, name: str) -> list[dict[str, Any]]:
        return self._pods

    def read_metrics(self, pod: dict[str, Any]) -> str:
        page = self._pages[pod["metadata"]["name"]]
        if isinstance(page, ClusterError):
            raise page
        return page


def test_each_rank_has_the_metrics_of_its_pod() -> None:
    job = make_job(trainer=trainer_spec(), workers={"procsPerWorker": 2}, status={"attempt": 1})
    pods = [make_pod(job, index, status=kubelet.running(NOW)) for index in (0, 1)]
    page = """trainyard_last_step_timestamp_seconds{job_name="job"} 5.0
trainyard_memory_bytes{job_name="job",rank="1",kind="resident"} 1024
trainyard_rank_compute_seconds{job_name="job",rank="3"} 0.5
trainyard_straggler_ratio{job_name="job",rank="3"} 2.5
trainyard_step_duration_seconds_sum{job_name="job",phase="data"} 4
trainyard_step_duration_seconds_count{job_name="job",phase="data"} 8
trainyard_step_part_ratio{job_name="job",part="overlap"} 0.2
"""
    cluster: Any = Pods(pods, {"job-1-0": page, "job-1-1": ClusterError("cannot read job-1-1: no")})
    view = read_ranks(cluster, job)
    assert [(r.rank, r.pod, r.last_step) for r in view.ranks] == [
        (0, "job-1-0", 5.0),
        (1, "job-1-0", 5.0),
        (2, "job-1-1", None),
        (3, "job-1-1", None),
    ]
    assert (view.ranks[1].memory, view.ranks[3].compute, view.ranks[3].straggler) == ({"resident": 1024}, 0.5, 2.5)
    assert (view.phases, view.parts, view.problem) == ({"data": 0.5}, {"overlap": 0.2}, "cannot read job-1-1: no")


@pytest.mark.parametrize(
    ("program", "page", "problem"),
    [
        ({"trainer": trainer_spec()}, "{{", "the metrics page of pod job-1-0 is not in the Prometheus text format"),
        ({}, "", "the program serves no metrics, see spec.metrics"),
    ],
)
def test_a_pod_without_metrics_is_reported(program: dict[str, Any], page: str, problem: str) -> None:
    job = make_job(**program, replicas=1, status={"attempt": 1})
    cluster: Any = Pods([make_pod(job, status=kubelet.running(NOW))], {"job-1-0": page})
    assert read_ranks(cluster, job).problem == problem


def test_lines_of_several_pods_are_printed_as_they_arrive() -> None:
    first, second = SimpleQueue[str](), SimpleQueue[str]()
    lines = merge_lines([iter(first.get, "end"), iter(second.get, "end")])
    second.put("b")
    assert next(lines) == "b"
    first.put("a")
    assert next(lines) == "a"
    first.put("end")
    second.put("c")
    assert next(lines) == "c"
    second.put("end")
    assert list(lines) == []


def test_requests_are_retried_while_the_cluster_is_unavailable(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 99.0, 200.0, 300.0])
    retry = Retry(100, lambda: next(clock))

    def unavailable() -> str:
        raise UnavailableError("no answer")

    assert [retry.call(unavailable), retry.call(unavailable), retry.call(lambda: "yes")] == [None, None, "yes"]
    assert capsys.readouterr().err == "waiting: no answer\nthe cluster responds again\n"
    assert retry.call(unavailable) is None, "the limit counts from the first failure of a new outage"
    with pytest.raises(UnavailableError):
        retry.call(unavailable)


def test_the_pod_of_a_rank_is_that_of_the_current_group() -> None:
    job = make_job(workers={"procsPerWorker": 4}, status={"attempt": 3, "podAttemptOverride": 2})
    assert [pod_of_rank(job, rank) for rank in (0, 3, 4, 7)] == ["job-2-0", "job-2-0", "job-2-1", "job-2-1"]
    with pytest.raises(ClusterError, match="--rank: job has the ranks 0 to 7; choose one"):
        pod_of_rank(job, 8)
    server = make_job(**served(), status={"attempt": 1})
    assert pod_of_rank(server, 2) == "job-1-server"
    with pytest.raises(ClusterError, match="job has no pods yet"):
        pod_of_rank(make_job(), 0)


@pytest.mark.parametrize(
    ("status", "message", "kind", "code", "words"),
    [
        (404, "", ClusterError, 3, "the cluster has no TrainingJob resource; install"),
        (404, 'pods "a" not found', NotFoundError, 2, 'cannot look: pods "a" not found'),
        (403, "user x cannot list", ClusterError, 2, "user x cannot list; ask for that permission"),
        (401, "Unauthorized", ClusterError, 3, "log in again"),
        (409, "the object has been modified", ClusterError, 1, "try again"),
        (429, "too many requests", UnavailableError, 1, "too many requests"),
        (422, "spec: a\n must b", ClusterError, 2, "cannot look: spec: a must b"),
        (500, "etcd", UnavailableError, 1, "cannot look: etcd"),
        (503, "", UnavailableError, 1, "cannot look: HTTP 503"),
    ],
)
def test_each_error_response_is_one_line_with_an_exit_code(
    status: int, message: str, kind: type[ClusterError], code: int, words: str
) -> None:
    problem = error_from_response(status, json.dumps({"message": message}) if message else "404 page not found", "look")
    assert type(problem) is kind
    assert problem.code == code
    assert words in str(problem)
    assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, "404 page not found\n", "cannot look: HTTP 404 404 page not found"),
        (403, b"Forbidden", "cannot look: HTTP 403 Forbidden"),
        (500, None, "cannot look: HTTP 500"),
        (403, '{"message": "user x cannot get pods/proxy"}', "cannot look: user x cannot get pods/proxy; ask for that"),
        (503, '{"message": "error trying to reach service"}', "cannot look: error trying to reach service"),
    ],
)
def test_responses_of_a_pod_and_of_the_api_server_are_distinguished(status: int, body: Any, words: str) -> None:
    assert str(error_from_response(status, body, "look", proxied=True)).startswith(words)


def test_a_taken_name_and_a_changed_job_are_distinguished() -> None:
    answer = json.dumps({"message": 'trainingjobs "job" already exists', "reason": "AlreadyExists"})
    problem = error_from_response(409, answer, "create job job")
    assert (problem.code, str(problem).endswith("delete it first, or change it with kubectl apply")) == (2, True)


def test_fields_of_a_newer_version_are_ignored_or_reported() -> None:
    body = body_of(running_job())
    body["status"]["mood"] = "good"
    body["spec"]["workers"]["hats"] = 2
    assert parse_job(body).status.progress == running_job().status.progress, "unknown fields are left out"
    body["status"]["phase"] = "Dreaming"
    assert parse_job(body).status.phase is None
    body["spec"]["imagePullPolicy"] = "Sometimes"
    with pytest.raises(
        ClusterError, match=r"does not support the value of its field spec.imagePullPolicy; install the version"
    ):
        parse_job(body)


def test_lines_that_are_not_reports_are_skipped() -> None:
    report = {"attempt": 1, "step": 5, "loss": 2.0, "tokensPerSecond": 100}
    foreign = ['{"tokensPerSecond": 1', '{"tokensPerSecond": 1}', '"tokensPerSecond"', '{"tokensPerSecond": null}']
    lines = ["Traceback", json.dumps({"message": "x"}), json.dumps(report), *foreign, ""]
    assert [found.step for found in parse_reports(lines)] == [5]


def test_a_loss_that_is_not_finite_is_a_gap_in_the_plot(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"attempt": 1, "step": step, "tokensPerSecond": 100}) for step in (1, 2)]
    lines.append(json.dumps({"attempt": 2, "step": 2, "loss": 2.0, "tokensPerSecond": 100}))
    reports = list(parse_reports(lines))
    assert [math.isfinite(report.loss) for report in reports] == [False, False, True]
    draw_plot(make_job(), reports)
    drawn = capfd.readouterr().out
    assert "job: loss (nats)" in drawn
    assert "tokens/s" in drawn
    draw_plot(table_job(), [StepReport(1, step, 2.0, 105, 210) for step in (1, 2)])
    drawn = capfd.readouterr().out
    assert ("samples/s" in drawn, "tokens/s" in drawn) == (True, False)
    save_plot(make_job(), [*reports, StepReport(2, 3, math.inf, 100)], tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("events job --watch -o json", "--watch: requires -o table; leave out one of them"),
        ("logs job --all --failed", "--rank, --all and --failed exclude each other; choose one"),
        ("plot job -o loss.txt", "--output: loss.txt must end in .png, .svg or .pdf"),
    ],
)
def test_options_that_exclude_each_other_are_one_line(arguments: str, words: str) -> None:
    done = CliRunner().invoke(app, arguments.split())
    assert (done.exit_code, done.stderr) == (2, f"error: {words}\n")


def test_a_plot_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Logged:
        def __init__(self, *_: Any) -> None: ...

        def get_job(self, name: str) -> TrainingJob:
            return make_job(name, status={"attempt": 1})

        def stream_log(self, pod: str) -> list[str]:
            return [json.dumps({"attempt": 1, "step": 1, "loss": 2.0, "tokensPerSecond": 100})]

    monkeypatch.setattr("trainyard_cli.commands.plot.Cluster", Logged)
    file = tmp_path / "none" / "plot.png"
    done = CliRunner().invoke(app, ["plot", "job", "-o", str(file)])
    assert (done.exit_code, done.stderr) == (2, f"error: --output: {file}: No such file or directory\n")


def test_commands_without_a_cluster_start_without_its_client() -> None:
    late = ["kubernetes", "matplotlib", "plotext", "torch", "trainyard_operator.backends"]
    program = f"import sys, trainyard_cli.main; print([name for name in {late} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout == b"[]\n"


def test_conditions_that_only_summarize_others_are_left_out() -> None:
    conditions = [
        Condition(type=kind, status="True", reason="Why", message="", last_transition_time=NOW)
        for kind in ("Running", "Ready", "Reconciling", "Stalled", "Finished", "Failed")
    ]
    lines = shown(tables.condition_table(conditions, NOW))
    assert [line.split()[0] for line in lines] == ["CONDITION", "Running", "Failed"]


def test_messages_of_events_and_conditions_are_printed_literally() -> None:
    words = "[rank0]: lost at [/opt/pair.cc:534]"
    event = {"type": "Warning", "reason": "WorkerFailed", "message": words, "lastTimestamp": NOW.isoformat()}
    assert f"WorkerFailed {words}" in shown(tables.event_table([event], NOW))[1]
    assert shown(tables.event_table([{**event, "count": 3}], NOW))[1].endswith(f"{words} (3 times)")
    condition = Condition(type="Failed", status="True", reason="Why", message=words, last_transition_time=NOW)
    assert words in shown(tables.condition_table([condition], NOW))[1]


@pytest.mark.parametrize("speeds", [[100, 100, 100, 101], [5, 5000, 20_000, 90_000], [7], [math.nan, math.nan]])
def test_curves_do_not_touch_the_frame_of_the_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speeds: list[float]
) -> None:
    from matplotlib import pyplot as plt

    figures: list[Any] = []
    monkeypatch.setattr(plt, "close", figures.append)
    reports = [StepReport(1, 10 * step, 2.0 + 1 / (step + 1), speed) for step, speed in enumerate(speeds)]
    save_plot(make_job(), reports, tmp_path / "plot.png")
    monkeypatch.undo()
    (figure,) = figures
    for axes in figure.axes:
        low, high = axes.get_ylim()
        for y in (y for line in axes.lines for y in line.get_ydata() if math.isfinite(y)):
            assert low + 0.04 * (high - low) <= y <= high - 0.04 * (high - low) or (y < 0.04 * high and low == 0)
    assert figure.axes[1].get_ylim()[0] == 0
    plt.close(figure)


def test_the_throughput_of_table_data_is_in_samples_everywhere(tmp_path: Path) -> None:
    job = table_job()
    assert "210 samples/s" in progress_line(job)
    assert "throughput │ 210 samples/s" in "\n".join(shown(status_table(job, NOW)))
    assert "210 samples/s" in shown(tables.job_table([body_of(job)], [job], NOW))[1]
    reports = [StepReport(1, step, 2.0, 105, 210) for step in (1, 2, 3)]
    save_plot(job, reports, tmp_path / "plot.svg")
    assert "<!-- samples/s -->" in (tmp_path / "plot.svg").read_text()


def test_the_throughput_of_an_own_program_is_what_it_reports() -> None:
    for reported, text in (({"samplesPerSecond": 50}, "50 samples/s"), ({"tokensPerSecond": 70}, "70 tokens/s")):
        job = make_job(status={"attempt": 1, "progress": {"attempt": 1, "step": 5, **reported}})
        assert progress_line(job) == f"step 5  {text}"
        assert f"throughput │ {text}" in "\n".join(shown(status_table(job, NOW)))
    assert throughput(make_job(status={"attempt": 1, "progress": {"attempt": 1, "step": 5}})) is None


def command_help(*path: str) -> str:
    done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return " ".join(done.output.replace("│", " ").split())


def test_help_prints_every_text_as_it_is_written() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert len(group.commands) == 23
    for name, command in group.commands.items():
        text = command_help(name)
        assert command.callback is not None
        documentation = inspect.getdoc(command.callback)
        assert documentation is not None
        for paragraph in documentation.split("\n\n"):
            assert " ".join(paragraph.split()) in text, name
        for parameter in command.params:
            help_text = getattr(parameter, "help", "").replace("\\[", "[")
            assert help_text in text, (name, parameter.name)
        assert "<bool>" not in text, name
    assert "<bool>" not in command_help()
    assert "[default: runs/NAME-TIME]" in command_help("run")
    assert "[default: the current one]" in command_help("list")


def test_ctrl_c_while_the_command_is_imported_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(module: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainyard_cli.entry.import_module", interrupted)
    with pytest.raises(SystemExit) as exited:
        entry.main()
    assert exited.value.code == 130


def test_a_missing_module_of_trainyard_itself_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError("no module", name="trainyard_cli.views")

    monkeypatch.setattr("trainyard_cli.entry.import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        entry.main()
