"""The last line of defence: whatever a plan puts into a status, the API server can store it."""

import json
import math
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NOW, make_job, make_progress, trainer_spec
from tests.support.story import running
from trainyard.crd import openapi_schema
from trainyard.resource.status import Condition, ConditionType, Failure, Reason, TrainingJobStatus
from trainyard_operator.lifecycle.status_builder import StatusBuilder
from trainyard_operator.pod_input.storable import MAX_TEXT, storable

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=50) | st.integers(0, 50_000).map("x".__mul__)
ANY_INTEGER = st.integers() | st.integers(-3, 3)
ANY_FLOAT = st.floats()


def violations(value: Any, schema: dict[str, Any], path: str = "status") -> list[str]:
    """Return where a value breaks the structural schema, as far as sizes, types and limits go."""
    found = []
    kind = schema.get("type")
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    if not isinstance(value, types[kind]):  # type: ignore[arg-type, index]
        return [f"{path} is no {kind}"]
    if kind == "string" and len(value) > schema.get("maxLength", MAX_TEXT):
        found.append(f"{path} is too long")
    least, most = (-(2**31), 2**31 - 1) if kind == "integer" else (-math.inf, math.inf)
    if kind in ("integer", "number") and not schema.get("minimum", least) <= value <= schema.get("maximum", most):
        found.append(f"{path} is out of bounds: {value}")
    if kind == "array":
        for item in value:
            found += violations(item, schema["items"], f"{path}[]")
    if kind == "object":
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            found += violations(item, properties.get(key, rest), f"{path}.{key}")
    return found


def check(status: TrainingJobStatus) -> None:
    body = status.to_dict()
    text = json.dumps(body, allow_nan=False, ensure_ascii=False)
    assert len(text.encode()) < 500_000
    assert violations(body, openapi_schema()["properties"]["status"]) == []
    assert TrainingJobStatus.model_validate_json(text).to_dict() == body


@given(
    message=ANY_TEXT,
    node=ANY_TEXT,
    code=st.none() | ANY_INTEGER,
    metric=ANY_FLOAT,
    loss=ANY_FLOAT,
    attempt=st.integers(0, 10**30),
    at=st.datetimes() | st.just(NOW),
)
def test_a_status_of_any_values_can_be_stored(
    message: str, node: str, code: int | None, metric: float, loss: float, attempt: int, at: datetime
) -> None:
    builder = StatusBuilder.from_job(make_job(trainer=trainer_spec()), NOW)
    builder.attempt = attempt
    builder.slow_nodes = (node, "node-1")
    builder.progress = make_progress().replace(loss=loss, metrics={"accuracy": metric, "f1": 0.5}, updated_at=at)
    failure = Failure(attempt=1, reason="Error", at=NOW)
    builder.last_failure = failure.replace(message=message, node=node, exit_code=code, reason=message, at=at)
    builder.set_condition(ConditionType.RUNNING, False, Reason.PODS_REFUSED, message)
    check(builder.build())


def test_a_status_that_can_be_stored_stays_the_same() -> None:
    status = running().status
    assert storable(status) is status


def test_the_limit_of_each_field_is_taken_from_the_model() -> None:
    failure = Failure(attempt=1, reason="Error", at=NOW)
    cut = storable(failure.replace(reason="r" * 2000, message="m" * 5000, pod="p" * 5000, rank=2**40))
    assert [len(text or "") for text in (cut.reason, cut.message, cut.pod)] == [1024, 4096, MAX_TEXT]
    assert cut.rank == 2**31 - 1
    condition = Condition(type="T", status="True", reason="R", last_transition_time=NOW).replace(message="m" * 40_000)
    assert len(storable(condition).message) == 32_768


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_left_out(value: float) -> None:
    progress = make_progress().replace(loss=value, metrics={"perplexity": value, "loss": 1.0})
    kept = storable(progress)
    assert (kept.loss, kept.metrics) == (None, {"loss": 1.0})
