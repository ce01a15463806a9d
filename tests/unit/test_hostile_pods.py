"""Whatever a pod says, the plan of its job is made, and the status that follows from it can be stored."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from tests.builders import NOW, make_job, make_pod
from trainyard.protocol import constants
from trainyard.resource.status import TrainingJobStatus
from trainyard_operator.controller.cache import Cache
from trainyard_operator.lifecycle.observation import Observation
from trainyard_operator.lifecycle.plan import plan

INT32 = 2**31 - 1
MAX_STATUS_BYTES = 100_000

text = st.one_of(
    st.text(max_size=50),
    # Surrogates, control characters, other directions, what JSON and terminals treat in a special way.
    st.text(st.sampled_from('aZ0 \n\r\x00\x1b[\u202e\udce9\ud800é😀"\\{}'), max_size=50),
)
stored = text.map(lambda text: text.encode(errors="replace").decode())
"""What the API server can store: surrogates reach the operator only as escape sequences in JSON of a pod's own."""
long_text = st.builds(lambda part, times: part * times, text, st.sampled_from([1, 1000]))
long_stored = st.builds(lambda part, times: part * times, stored, st.sampled_from([1, 1000]))
number = st.one_of(st.integers(), st.floats(), st.sampled_from([10**30, -1, INT32, 2**63, 1e308]))
value = st.recursive(
    st.one_of(st.none(), st.booleans(), number, text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=8,
)
figures = st.dictionaries(text, number, max_size=5)
progress = st.fixed_dictionaries(
    {}, optional={"step": number, "loss": number, "metrics": figures, "stragglerRank": number, "attempt": number}
)
hang = st.fixed_dictionaries({"phase": number, "lastHeartbeat": number})
message = st.one_of(
    long_stored,
    value.map(json.dumps),
    st.fixed_dictionaries(
        {},
        optional={
            "rank": number,
            "exception": long_text,
            "message": long_text,
            "step": number,
            "peerLost": value,
            "hang": hang,
            "progress": progress,
        },
    ).map(json.dumps),
    st.integers(1, 4000).map(lambda depth: "[" * depth),
)
label = st.sampled_from(["", "0", "1", "2", "99", "1.0", "-1", "x" * 63, str(INT32), str(INT32 + 1), "9" * 62])
time = st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2030-01-01T12:00:00Z"])
"""The API server accepts no other form of a time."""
NUMERIC_LABELS = (constants.LABEL_ATTEMPT, constants.LABEL_INDEX, constants.LABEL_REPLICAS, constants.LABEL_ROLE)


@st.composite
def terminated(draw: st.DrawFn) -> dict[str, Any]:
    """The state of a container that has ended."""
    state = {
        "exitCode": draw(st.integers(-INT32, INT32)),
        "message": draw(message),
        "reason": draw(stored),
        "finishedAt": draw(time),
    }
    return {"terminated": state}


@st.composite
def statuses(draw: st.DrawFn) -> dict[str, Any]:
    """The status of a pod, in which all texts may be anything."""
    waiting = st.fixed_dictionaries({"reason": stored, "message": long_stored}).map(lambda state: {"waiting": state})
    state = draw(st.one_of(terminated(), waiting, st.just({"running": {"startedAt": "2030-01-01T12:00:00Z"}})))
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": draw(long_stored)}
    return {
        "phase": draw(st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"])),
        "reason": draw(st.one_of(stored, st.just("Evicted"))),
        "message": draw(message),
        "conditions": draw(st.sampled_from([[], [condition]])),
        "containerStatuses": [{"name": constants.WORKER_CONTAINER, "image": draw(stored), "state": state}],
    }


def ended(message: str, code: int = 1) -> dict[str, Any]:
    """The status of a pod that has ended with a termination message."""
    end = {"exitCode": code, "message": message, "finishedAt": "2030-01-01T12:00:00Z"}
    container = {"name": constants.WORKER_CONTAINER, "image": "", "state": {"terminated": end}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}


def assert_storable(body: Any) -> None:
    """Check what the API server checks of any object: encoding, size, finite numbers, integers of 64 bits."""
    assert len(json.dumps(body, allow_nan=False, ensure_ascii=False).encode()) < MAX_STATUS_BYTES
    values = [body]
    while values:
        one = values.pop()
        if isinstance(one, dict):
            values += one.values()
        elif isinstance(one, list):
            values += one
        elif isinstance(one, int):
            assert abs(one) <= INT32


@given(
    status=statuses(),
    labels=st.one_of(st.just({}), st.dictionaries(st.sampled_from(NUMERIC_LABELS), label, max_size=2)),
    annotations=st.dictionaries(st.sampled_from([constants.ANNOTATION_PORT, constants.ANNOTATION_PATH]), stored),
    limit=st.integers(0, 1),
)
@example(ended('{"message": "boom \\udce9"}'), {}, {}, 0)
@example(ended('{"rank": 0, "progress": {"step": 9, "metrics": {"a": Infinity}}}', code=0), {}, {}, 0)
@example(ended('{"rank": 0, "progress": {"step": 9, "metrics": {"' + "a" * 3900 + '": 1}}}', code=0), {}, {}, 0)
@example(ended(json.dumps({"rank": 10**30, "message": "boom"})), {}, {}, 0)
@example(ended(""), {constants.LABEL_ATTEMPT: "9" * 62}, {}, 0)
@example(ended(""), {constants.LABEL_REPLICAS: "9" * 62}, {}, 0)
def test_any_pod_leaves_a_status_that_can_be_stored(
    status: dict[str, Any], labels: dict[str, str], annotations: dict[str, str], limit: int
) -> None:
    known = TrainingJobStatus()
    pod = None
    # Accept the job, create its pod, read what the pod says, and act on it.
    for step in range(5):
        job = make_job(replicas=1, status=known.to_dict(), restartPolicy={"maxRestarts": limit})
        cache = Cache()
        key = cache.put_job(job)
        if pod is None and step >= 2:
            pod = make_pod(job, status=status)
            pod["metadata"]["labels"] |= labels
            pod["metadata"]["annotations"] = annotations
        if pod is not None:
            cache.put_pod(pod)
        known = plan(Observation(job, cache.workers(key), NOW)).status
        assert_storable(known.to_dict())
