"""A slow rank: reported with pod and node, and replaced, if the user wants that, once for each node."""

from typing import Any

import pytest

from tests.builders import make_job, make_progress, make_worker, trainer_spec
from tests.support.story import Story, running
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.containers import SchedulingBlocker
from trainyard_operator.manifests.pod import build_pod

SLOW = {"straggler_rank": 1, "straggler_ratio": 2.5}
TEXT = "attempt 1: rank 1 (pod job-1-1, node b) takes 2.5 times as long as the median rank for the same computation"


def training(action: str) -> Story:
    straggler = {"action": action}
    story = running(trainer=trainer_spec(), checkpoint={"claim": {"size": "1Gi"}}, health={"straggler": straggler})
    story.see(*(make_worker(i, node=node) for i, node in enumerate("ab")))
    return reads(story, step=10)


def reads(story: Story, **page: Any) -> Story:
    story.events.clear()
    story.progress = make_progress(attempt=story.job.status.attempt, **page)
    story.settle()
    return story


def reported(story: Story) -> list[str]:
    return [e.message for e in story.events if e.reason == Reason.STRAGGLER]


def test_a_slow_rank_degrades_the_job_while_it_is_slow() -> None:
    story = reads(training("Report"), step=20, **SLOW)
    assert reported(story) == [TEXT]
    condition = story.job.status.condition(C.DEGRADED)
    assert condition is not None
    assert (condition.status, condition.message) == ("True", TEXT)
    assert reported(reads(story, step=30, **SLOW)) == []
    reads(story, step=40)
    assert not story.job.status.is_true(C.DEGRADED)
    assert story.job.status.attempt == 1


def test_replacing_restarts_without_the_node_and_does_not_count() -> None:
    story = reads(training("Replace"), step=20, **SLOW)
    status = story.job.status
    assert (status.attempt, status.restarts, status.restarts_counted) == (2, 1, 0)
    assert status.slow_nodes == ("b",)
    assert any(message.startswith(TEXT) for message in reported(story))


def test_a_node_is_replaced_once() -> None:
    story = reads(training("Replace"), step=20, **SLOW)
    story.see().settle()
    story.see(*(make_worker(i, attempt=2, node="b") for i in range(2))).settle()
    reads(story.later(601), step=30, **SLOW)
    assert story.job.status.attempt == 2, "it was not avoided for nothing: there is no other"


def test_the_next_node_is_replaced_once_the_new_group_has_run_for_a_while() -> None:
    """However unlike the nodes are, and though the operator remembers nothing but the status."""
    story = reads(training("Replace"), step=20, **SLOW)
    story.see().settle()
    story.see(*(make_worker(i, attempt=2, node="c") for i in range(2))).settle()
    reads(story.later(599), step=30, **SLOW)
    assert (story.job.status.attempt, story.job.status.slow_nodes) == (2, ("b",))
    assert story.job.status.is_true(C.DEGRADED), "but it is reported"
    reads(story.later(1), step=31, **SLOW)
    assert (story.job.status.attempt, story.job.status.slow_nodes) == (3, ("b", "c"))


def test_slow_nodes_are_readmitted_if_the_group_cannot_be_scheduled() -> None:
    story = reads(training("Replace"), step=20, **SLOW)
    story.see().settle()
    full = SchedulingBlocker(Reason.UNSCHEDULABLE, "no node")
    story.see(*(make_worker(i, attempt=2, state="Pending", blocker=full) for i in range(2))).settle()
    assert story.job.status.attempt == 2
    story.later(61).settle()
    assert (story.job.status.attempt, story.job.status.slow_nodes_readmitted) == (3, True)
    story.see().settle()
    story.see(*(make_worker(i, attempt=3, node="c") for i in range(2))).settle()
    reads(story.later(601), step=30, **SLOW)
    assert story.job.status.attempt == 3, "and nothing more is replaced"


AFFINITY = "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"


@pytest.mark.parametrize(
    ("template", "terms"),
    [
        ({}, [{}]),
        (
            {"affinity": {"nodeAffinity": {AFFINITY[1]: {AFFINITY[2]: [{"matchExpressions": [{"key": "x"}]}, {}]}}}},
            [{"matchExpressions": [{"key": "x"}]}, {}],
        ),
    ],
)
def test_pods_stay_away_from_slow_nodes_whatever_the_template_wants(
    template: dict[str, Any], terms: list[dict[str, Any]]
) -> None:
    job = make_job(workers={"template": {"spec": template}}, status={"attempt": 2, "slowNodes": ["b", "c"]})
    affinity = build_pod(job, 2, 0, trainer_image="")["spec"]["affinity"]
    away = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in ("b", "c")]
    expected = [{**term, "matchFields": away} for term in terms]
    assert affinity[AFFINITY[0]][AFFINITY[1]][AFFINITY[2]] == expected
    needed = job.replace(status=job.status.replace(slow_nodes_readmitted=True))
    assert build_pod(needed, 2, 0, trainer_image="")["spec"].get("affinity") == template.get("affinity")
