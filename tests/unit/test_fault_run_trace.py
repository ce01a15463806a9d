"""What the fault tests make of the logs of pods: lost, repeated and skipped work shows."""

import json
import shutil
from pathlib import Path

from tests.e2e.faults.report import Row, recorded_seconds, render
from tests.e2e.faults.run_trace import RunTrace, follow, repeated, skipped
from tests.e2e.faults.table import TABLE
from tests.e2e.namespace import eventually


def run(*attempts: tuple[int, range], shift: int = 0) -> RunTrace:
    """Attempts that continue after a step and make some; `shift`: by how many samples the last one is off."""
    trace = RunTrace()
    for attempt, (resumed, steps) in enumerate(attempts, 1):
        off = shift if attempt == len(attempts) else 0
        if resumed:
            trace.hear(json.dumps({"attempt": attempt, "resumedStep": resumed}), 0.0)
        for step in steps:
            first = 4 * (step - 1) + off
            for rank in (1, 0):
                numbers = [first + 2 * rank, first + 2 * rank + 1]
                trace.hear(json.dumps({"attempt": attempt, "step": step, "rank": rank, "drawn": numbers}), 0.0)
            trace.hear(json.dumps({"attempt": attempt, "step": step, "loss": 1 / step + off}), 10 * attempt + step)
    return trace


WHOLE = run((0, range(1, 11)))


def test_work_that_was_lost_and_done_again_is_counted_once() -> None:
    trace = run((0, range(1, 8)), (5, range(6, 11)))
    assert (trace.attempts, trace.step, trace.reached(1)) == ([1, 2], 10, 7)
    assert trace.lasting() == {step: 1 if step <= 5 else 2 for step in range(1, 11)}
    assert trace.losses() == WHOLE.losses()
    assert trace.samples() == WHOLE.samples() == list(range(40))


def test_samples_that_come_again_or_never_are_found() -> None:
    samples = run((0, range(1, 8)), (5, range(6, 11)), shift=-3).samples()
    assert (repeated(samples), skipped(samples, WHOLE.samples())) == (3, 3)
    samples = run((0, range(1, 8)), (5, range(6, 11)), shift=2).samples()
    assert (repeated(samples), skipped(samples, WHOLE.samples())) == (0, 2)
    assert samples != WHOLE.samples()


def test_the_longest_pause_ends_with_a_step_that_is_new() -> None:
    trace = run((0, range(1, 8)), (5, range(6, 11)))  # steps 8, 9 and 10 come at 28, 29 and 30
    assert trace.longest_pause(17.5, 7) == 10.5
    assert trace.longest_pause(28.5, 8) == 1


def test_a_run_that_starts_afresh_has_nothing_of_the_one_before() -> None:
    trace = run((0, range(1, 8)), (0, range(1, 11)))
    assert set(trace.lasting().values()) == {2}


def test_logs_are_followed_from_pod_to_pod_though_they_are_deleted(tmp_path: Path) -> None:
    with follow(tmp_path, "space", "job") as trace:
        for attempt in (1, 2):
            folder = tmp_path / f"space_job-{attempt}-0_uid{attempt}" / "worker"
            folder.mkdir(parents=True)
            said = json.dumps({"attempt": attempt, "step": attempt, "loss": 0.5})
            time = f"2030-01-01T00:00:0{attempt}.123456789Z"
            with (folder / "0.log").open("w") as file:
                file.write(f"{time} stdout F {said}\n{time} stderr F no JSON\n{time} stdout F {{")
            eventually("the step heard", lambda: trace.step == attempt, timeout=5, interval=0.01)  # noqa: B023
            shutil.rmtree(folder)
        other = tmp_path / "space_job2-1-0_uid" / "worker"
        other.mkdir(parents=True)
        (other / "0.log").write_text('2030-01-01T00:00:00Z stdout F {"attempt": 9, "step": 9, "loss": 1}\n')
    assert [(s.attempt, s.number, round(s.at % 60, 3)) for s in trace.steps] == [(1, 1, 1.123), (2, 2, 2.123)]


def test_the_page_has_a_row_for_each_fault() -> None:
    row = Row("a pod is deleted", 7.125, 0, 0, 0, 0.0, "Deleted", False)
    page = render([row], cpus=2, steps=100, pace=0.1, every=20)
    assert page.endswith("| a pod is deleted | yes | 7.1 | 0 | 0, 0 | 0 | `Deleted` | no |\n")


def test_the_seconds_of_a_page_are_read_back() -> None:
    rows = [Row("a rank", 2.1, 6, 0, 0, 0.0, "SIGKILL", True), Row("`the disk`", 0.25, 0, 0, 0, 1e-7, None, False)]
    page = render(rows, cpus=2, steps=80, pace=0.06, every=15)
    assert recorded_seconds(page) == {"a rank": 2.1, "`the disk`": 0.2}


def test_every_fault_has_a_recorded_time_and_every_extended_one_a_test_in_its_place() -> None:
    root = Path(__file__).parents[2]
    recorded = recorded_seconds((root / "docs" / "resilience.md").read_text("utf-8"))
    assert {fault.what for fault in TABLE} == recorded.keys()
    first_tier = {fault.name for fault in TABLE if fault.represented_by is None}
    assert len(first_tier) == 7
    for fault in TABLE:
        if fault.represented_by is not None:
            file, _, test = fault.represented_by.partition("::")
            assert test in first_tier or f"def {test}(" in (root / file).read_text("utf-8"), fault.name
