"""What a person sees of a job: the table of its status, and the lines while it runs."""

from typing import Any

import pytest
from rich.console import Console

from tests.builders import after, make_job
from tests.support.kubelet import zulu
from trainyard_cli.display import Display
from trainyard_cli.output import screen
from trainyard_cli.report import status_table
from trainyard_operator.lifecycle.status_builder import Event

TRACE = "[rank0]: RuntimeError at [/opt/pair.cc:534] [1]"
"""Words as torch has them; in rich's markup two of the brackets are tags."""


def text_of(status: dict[str, Any], *, now: float = 120) -> str:
    console = screen()
    with console.capture() as captured:
        console.print(status_table(make_job(status=status), after(now)))
    return " ".join(captured.get().split())


def table(**goodput: object) -> str:
    return text_of({"startTime": zulu(after(0)), "goodput": {"accountedAt": zulu(after(120)), **goodput}})


def test_the_time_is_told_with_all_parts_that_are_not_empty() -> None:
    text = table(ratio=0.825, productiveSeconds=99, startupSeconds=20, checkpointSeconds=1)
    assert "goodput │ 82% (startup 20s, checkpoint 1s)" in text


def test_a_job_without_any_time_has_no_such_row() -> None:
    assert "goodput" not in table()


def condition(kind: str, at: float) -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": "Why", "message": "", "lastTransitionTime": zulu(after(at))}


@pytest.mark.parametrize(
    ("status", "time"),
    [
        ({"conditions": [condition("Running", 10)]}, "1h"),
        ({"conditions": [condition("Suspended", 90)]}, "1m30s"),
        ({"conditions": [condition("Failed", 45)], "completionTime": zulu(after(44))}, "44s"),
    ],
    ids=["goes on", "suspended", "ended"],
)
def test_the_time_of_a_job_runs_until_it_ends_or_is_suspended(status: dict[str, Any], time: str) -> None:
    assert f"time │ {time} │" in text_of({"startTime": zulu(after(0)), **status}, now=3600)


def test_a_job_that_nobody_has_taken_up_is_pending() -> None:
    assert "phase │ Pending │" in text_of({})


def test_words_of_workers_are_shown_as_they_are() -> None:
    failure = {"attempt": 1, "pod": "job-1-0", "reason": "RuntimeError", "message": TRACE, "at": zulu(after(0))}
    assert f"job-1-0: RuntimeError: {TRACE}" in text_of({"lastFailure": failure})
    waits = {**condition("Progressing", 0), "message": TRACE}
    for terminal in (True, False):
        console = Console(width=200, force_terminal=terminal, color_system=None)
        with console.capture() as captured, Display(console) as display:
            display.show(make_job(status={"conditions": [waits]}), [Event("Warning", "WorkerFailed", TRACE)])
        assert f"WorkerFailed: {TRACE}" in captured.get()
        assert captured.get().count(TRACE) >= 2, "as an event, and as what the job waits for"
