"""Answers of launchers and termination messages: whatever a container says, the lifecycle can use it."""

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NOW, after, make_job, make_pod, trainer_spec
from tests.support import kubelet
from trainyard.protocol.termination import TerminationMessage
from trainyard_operator.lifecycle.observation import apply_launcher_state, observe_pod
from trainyard_operator.pod_input.launcher_answer import (
    MAX_AGE,
    MAX_ATTEMPTS_AHEAD,
    UNKNOWN_EXIT_CODE,
    parse_launcher_answer,
)
from trainyard_operator.pod_input.text import MAX_MESSAGE

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
ENDS = st.fixed_dictionaries(
    {
        "exitCode": st.integers() | JSON,
        "at": st.datetimes().map(str) | st.integers() | st.just("9999-12-31T23:59:59Z") | JSON,
    },
    optional={"message": st.text(max_size=30) | st.integers(0, 30_000).map("m".__mul__) | JSON},
)
ANSWERS = (
    st.fixed_dictionaries({"attempt": st.integers(0, 30) | JSON}, optional={"exitInfo": ENDS | JSON}).map(json.dumps)
    | JSON.map(json.dumps)
    | st.text()
)


@given(ANSWERS)
def test_any_answer_is_refused_or_fits_the_lifecycle(text: str) -> None:
    try:
        state = parse_launcher_answer(text, attempt=3, now=NOW)
    except ValueError:
        return
    assert 0 <= state.attempt <= 3 + MAX_ATTEMPTS_AHEAD
    if state.exit_info is not None:
        assert 0 <= state.exit_info.exit_code <= UNKNOWN_EXIT_CODE
        assert NOW - MAX_AGE <= state.exit_info.at <= NOW
        assert len(state.exit_info.message) <= MAX_MESSAGE
    pod = make_pod(make_job(trainer=trainer_spec()), status=kubelet.running(NOW, ready=False))
    json.dumps(apply_launcher_state(observe_pod(pod), state, unresponsive=False).exit_code)


@pytest.mark.parametrize(
    ("at", "understood"),
    [
        ("2030-01-01T11:59:58Z", after(-2)),
        ("2030-01-01T11:59:58", after(-2)),
        ("9999-01-01T00:00:00Z", NOW),
        ("0001-01-01T00:00:00Z", NOW - timedelta(hours=1)),
    ],
    ids=["as it should be", "without a zone", "in the future", "long ago"],
)
def test_times_are_within_reason(at: str, understood: object) -> None:
    answer = json.dumps({"attempt": 3, "exitInfo": {"exitCode": 10**30, "at": at}})
    state = parse_launcher_answer(answer, attempt=3, now=NOW)
    assert state.exit_info is not None
    assert (state.exit_info.at, state.exit_info.exit_code) == (understood, UNKNOWN_EXIT_CODE)


def test_an_attempt_that_was_never_requested_is_refused() -> None:
    with pytest.raises(ValueError, match="it runs attempt 2147483647, but the job is in attempt 3"):
        parse_launcher_answer('{"attempt": 2147483647}', attempt=3, now=NOW)


METRICS = st.dictionaries(st.text("abB_1-é", max_size=80), st.floats(), max_size=40)


@given(metrics=METRICS, extra=JSON)
def test_final_figures_can_always_be_stored(metrics: dict[str, float], extra: object) -> None:
    text = json.dumps({"progress": {"step": 3, "metrics": metrics}, "message": extra})
    decoded = TerminationMessage.decode(text)
    if decoded is None:
        return
    assert decoded.progress is not None
    json.dumps(decoded.progress.to_dict(), allow_nan=False)
    kept = decoded.progress.metrics or {}
    assert len(kept) <= 32
    assert all(len(name) <= 63 and name.isascii() for name in kept)


def test_long_messages_of_the_kubelet_are_bounded() -> None:
    status = kubelet.ended(NOW, 1, message="start" + "x" * 100_000 + "end")
    worker = observe_pod(make_pod(make_job(), status=status))
    assert len(worker.termination_message) == MAX_MESSAGE
    assert worker.termination_message.endswith("end")
