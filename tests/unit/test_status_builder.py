"""The status builder: what it writes, and that a misspelt or mistyped field is an error.

mypy checks this file with `warn_unused_ignores`: each `type: ignore` proves that mypy reports the error of its line.
"""

from dataclasses import fields

import pytest
from pydantic import ValidationError

from tests.builders import NOW, make_job, make_progress
from tests.support.story import running
from trainyard.resource.elastic import ElasticStatus
from trainyard.resource.status import ConditionType, Phase, Reason, TrainingJobStatus
from trainyard_operator.lifecycle.status_builder import StatusBuilder, StatusFields


def test_the_builder_has_every_field_of_the_status() -> None:
    assert {f.name for f in fields(StatusFields)} | {"phase", "conditions"} == set(TrainingJobStatus.model_fields)


def test_an_unchanged_builder_builds_the_stored_status() -> None:
    story = running()
    assert StatusBuilder.from_job(story.job, story.now).build() == story.status


def test_assigned_fields_are_in_the_status() -> None:
    builder = StatusBuilder.from_job(make_job(generation=7), NOW)
    builder.attempt += 3
    builder.slow_nodes = ("node-1",)
    builder.progress = make_progress(5)
    status = builder.build()
    assert (status.attempt, status.slow_nodes, status.progress) == (3, ("node-1",), make_progress(5))
    assert (status.observed_generation, status.phase) == (7, Phase.PENDING)


def test_a_misspelt_field_is_refused_by_mypy_and_at_run_time() -> None:
    builder = StatusBuilder.from_job(make_job(), NOW)
    with pytest.raises(AttributeError):
        builder.attmpt = 3  # type: ignore[attr-defined]


def test_a_mistyped_field_is_refused_by_mypy_and_at_run_time() -> None:
    builder = StatusBuilder.from_job(make_job(), NOW)
    builder.attempt = "three"  # type: ignore[assignment]
    with pytest.raises(ValidationError, match="attempt"):
        builder.build()


def test_a_value_out_of_its_bounds_is_refused() -> None:
    builder = StatusBuilder.from_job(make_job(), NOW)
    builder.restarts = -1
    with pytest.raises(ValidationError, match="restarts"):
        builder.build()


def test_a_copy_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^ElasticStatus has no field named replica$"):
        ElasticStatus().replace(replica=2)
    with pytest.raises(TypeError, match=r"^TrainingJobStatus has no field named observedGeneration, phse$"):
        TrainingJobStatus().replace(phse=Phase.FAILED, observedGeneration=1)


def test_an_event_is_recorded_only_if_the_status_or_the_reason_changes() -> None:
    builder = StatusBuilder.from_job(make_job(), NOW)
    for message in ("1 of 2 workers run", "2 of 2 workers run"):
        builder.set_condition(ConditionType.RUNNING, False, Reason.WAITING_FOR_PODS, message, event="Normal")
    builder.set_condition(ConditionType.RUNNING, False, Reason.UNSCHEDULABLE, "no node", event="Warning")
    assert [event.message for event in builder.events] == ["1 of 2 workers run", "no node"]


def test_a_condition_that_was_never_set_is_not_cleared() -> None:
    builder = StatusBuilder.from_job(make_job(), NOW)
    builder.clear_condition(ConditionType.DEGRADED, Reason.HEALTHY, "")
    assert builder.build().conditions == ()
