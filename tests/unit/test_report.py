"""The status table of a job, and the progress lines while it runs."""

from typing import Any

import pytest
from rich.console import Console

from tests.builders import after, make_job
from tests.support.kubelet import zulu
from trainyard_cli.output import stdout_console
from trainyard_cli.views.display import Display
from trainyard_cli.views.status import status_table
from trainyard_operator.lifecycle.status_builder import Event

TRACE = "[rank0]: RuntimeError at [/opt/pair.cc:534] [1]"
"""A message as torch writes it; rich's markup would parse two of the brackets as tags."""


def text_of(status: dict[str, Any], *, now: float = 120) -> str:
    console = stdout_console()
    console.width = 200  # whatever the width of the terminal is
    with console.capture() as captured:
        console.print(status_table(make_job(status=status), after(now)))
    return " ".join(captured.get().split())


def table(**goodput: object) -> str:
    return text_of({"startTime": zulu(after(0)), "goodput": {"accountedAt": zulu(after(120)), **goodput}})


def test_goodput_lists_all_parts_that_are_not_zero() -> None:
    text = table(ratio=0.825, productiveSeconds=99, startupSeconds=20, checkpointSeconds=1)
    assert "goodput │ 82% (startup 20s, checkpoint 1s)" in text


def test_a_job_without_a_goodput_ratio_has_no_goodput_row() -> None:
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
    ids=["active", "suspended", "finished"],
)
def test_the_time_of_a_job_ends_when_it_finishes_or_is_suspended(status: dict[str, Any], time: str) -> None:
    assert f"time │ {time} │" in text_of({"startTime": zulu(after(0)), **status}, now=3600)


def test_the_current_suspension_counts_neither_as_time_nor_as_goodput() -> None:
    goodput = {"accountedAt": zulu(after(100)), "ratio": 0.8, "productiveSeconds": 80, "startupSeconds": 8}
    status = {"startTime": zulu(after(0)), "conditions": [condition("Suspended", 90)]}
    text = text_of({**status, "goodput": {**goodput, "suspendedSeconds": 12}}, now=3600)
    assert "time │ 1m30s │" in text
    assert "goodput │ 80% (startup 8s, suspended 2s)" in text, "2 s of an earlier suspension, 10 s of this one"
    assert "goodput │ 80% (startup 8s)" in text_of({**status, "goodput": {**goodput, "suspendedSeconds": 10}})


def test_counts_agree_with_their_nouns() -> None:
    one = text_of({"attempt": 2, "restarts": 1})
    assert "attempts │ 2 (1 restart) │" in one
    assert "x 1 rank │" in one
    assert "attempts │ 3 (2 restarts) │" in text_of({"attempt": 3, "restarts": 2})


def test_a_job_without_a_phase_is_pending() -> None:
    assert "phase │ Pending │" in text_of({})


def test_messages_of_workers_are_printed_literally() -> None:
    failure = {"attempt": 1, "pod": "job-1-0", "reason": "RuntimeError", "message": TRACE, "at": zulu(after(0))}
    assert f"job-1-0: RuntimeError: {TRACE}" in text_of({"lastFailure": failure})
    waits = {**condition("Progressing", 0), "message": TRACE}
    for terminal in (True, False):
        console = Console(width=200, force_terminal=terminal, color_system=None)
        with console.capture() as captured, Display(console) as display:
            display.show(make_job(status={"conditions": [waits]}), [Event("Warning", "WorkerFailed", TRACE)])
        assert f"WorkerFailed: {TRACE}" in captured.get()
        assert captured.get().count(TRACE) >= 2, "as an event, and as the condition that the job waits for"
