"""Which changes of a status wait for others before they are written."""

from datetime import timedelta
from typing import Any

import pytest

from tests.builders import NOW, after, make_progress
from trainyard.resource.status import (
    Activity,
    Condition,
    ConditionType,
    Goodput,
    Reason,
    TrainingJobStatus,
    WorkerCounts,
)
from trainyard_operator.lifecycle.quiet_changes import is_quiet

INTERVAL = timedelta(seconds=30)


def condition(**changes: Any) -> Condition:
    values: dict[str, Any] = {
        "type": ConditionType.RUNNING,
        "status": "False",
        "reason": Reason.WAITING_FOR_PODS,
        "message": "1 of 4 workers run",
        "last_transition_time": NOW,
        "observed_generation": 1,
    }
    return Condition(**{**values, **changes})


STORED = TrainingJobStatus(attempt=1, conditions=(condition(),), workers=WorkerCounts(desired=4, running=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": WorkerCounts(desired=4, running=2)},
        {"conditions": (condition(message="2 of 4 workers run"),)},
        {"conditions": (condition(message="2 of 4 workers run"),), "workers": WorkerCounts(desired=4, running=2)},
    ],
    ids=["counts", "message", "both"],
)
def test_figures_and_words_are_quiet(changes: dict[str, Any]) -> None:
    assert is_quiet(STORED, STORED.replace(**changes), INTERVAL)


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": 2},
        {"succeeded_indexes": "0"},
        {"conditions": (condition(status="True"),)},
        {"conditions": (condition(reason=Reason.UNSCHEDULABLE),)},
        {"conditions": (condition(observed_generation=2),)},
        {"conditions": (condition(), condition(type=ConditionType.SUSPENDED))},
        {"conditions": ()},
        {"running_seconds": 3},
        {"progress": make_progress()},
    ],
    ids=", ".join,
)
def test_all_else_is_a_decision_or_news(changes: dict[str, Any]) -> None:
    workers = WorkerCounts(desired=4, running=2)
    assert not is_quiet(STORED, STORED.replace(**changes), INTERVAL)
    assert not is_quiet(STORED, STORED.replace(workers=workers, **changes), INTERVAL), "also together with figures"


def test_time_that_passes_is_quiet_and_what_it_is_spent_on_is_news() -> None:
    goodput = Goodput(activity=Activity.STARTUP, accounted_at=NOW)
    stored, workers = STORED.replace(goodput=goodput), WorkerCounts(desired=4, running=2)
    later = goodput.replace(startup_seconds=5, accounted_at=after(5))
    assert is_quiet(stored, stored.replace(workers=workers, goodput=later), INTERVAL)
    assert not is_quiet(stored, stored.replace(goodput=later.replace(activity=Activity.PRODUCTIVE)), INTERVAL)


def test_progress_that_is_held_back_is_quiet_together_with_figures() -> None:
    stored = STORED.replace(progress=make_progress(10, updated_at=NOW))
    later = stored.replace(progress=make_progress(10, loss=1.5, updated_at=after(5)), workers=WorkerCounts(running=3))
    assert is_quiet(stored, later, INTERVAL)
    assert not is_quiet(stored, later, timedelta(0)), "where each reading is written"
    old = later.replace(progress=make_progress(10, loss=1.5, updated_at=after(31)))
    assert not is_quiet(stored, old, INTERVAL)
