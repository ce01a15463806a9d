"""Secondary failures: a worker fails because its peer is gone, and the cause is looked for elsewhere."""

from typing import Any

import pytest

from tests.builders import after, make_worker, termination_message, trainer_spec
from tests.support.story import Story, running
from trainyard.resource.status import Phase
from trainyard_operator.lifecycle.observation import WorkerPod
from trainyard_operator.pod_input.log_tail import read_log_tail

WATCHDOG = (
    "[rank0]:[E1129 10:00:00 ProcessGroupNCCL.cpp:1895] [PG ID 0 PG GUID 0 Rank 0] Process group watchdog thread "
    "terminated with exception: NCCL error: remote process exited or there was a network error\n"
    "terminate called after throwing an instance of 'c10::DistBackendError'"
)
GLOO = "RuntimeError: [../gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:29500"


def secondary(index: int = 0, *, seconds: float = 0, text: str = GLOO, code: int = 1, **fields: Any) -> WorkerPod:
    return make_worker(
        index, state="Failed", exit_code=code, termination_message=text, finished_at=after(seconds), **fields
    )


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (GLOO, True),
        (WATCHDOG, True),
        ("DistBackendError: NCCL communicator was aborted on rank 3.", True),
        ("DistBackendError: NCCL error: ncclRemoteError: A call failed possibly due to a network error", True),
        ("DistNetworkError: The client socket has timed out after 600000ms", True),
        ("DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.", True),
        ("DistNetworkError: The server socket has failed to listen on any local network address", False),
        ("DistBackendError: NCCL error: unhandled cuda error: out of memory", False),
        ("ValueError: bad sample 17", False),
        ("ConnectionResetError: [Errno 104] Connection reset by peer", False),
        ("double free or corruption", False),
    ],
)
def test_a_lost_peer_is_recognised_by_what_torch_says_about_it(log: str, expected: bool) -> None:
    assert read_log_tail(log).peer_lost is expected


@pytest.mark.parametrize("text", [GLOO, WATCHDOG], ids=["gloo", "nccl"])
def test_a_secondary_failure_is_never_the_cause_beside_a_failure_that_came_later(text: str) -> None:
    code = 134 if text is WATCHDOG else 1
    story = running().later(10)
    story.see(
        secondary(0, seconds=1, text=text, code=code), make_worker(1, state="Failed", finished_at=after(5))
    ).step()
    assert story.status.last_failure is not None
    assert story.status.last_failure.pod == "job-1-1"


@pytest.mark.parametrize("built_in", [True, False])
def test_a_lost_node_is_free_although_its_peers_fail_first(built_in: bool) -> None:
    text = termination_message(rank=0, exception="RuntimeError", peer_lost=True) if built_in else GLOO
    story = running(**({"trainer": trainer_spec()} if built_in else {}), restartPolicy={"maxRestarts": 0})
    story.later(15).see(secondary(0, seconds=15, text=text), make_worker(1, node="node-7"))
    assert story.settle().wake_after == 3
    assert story.later(3).settle().wake_after == 87
    assert story.phase == Phase.RUNNING
    waits = story.condition("Running")
    assert (waits.status, waits.reason) == ("True", "PeerLost")
    assert waits.message == "pod job-1-0 has lost a peer; waiting for the cause, at most 90 s"
    lost = make_worker(1, node="node-7", disrupted=True, deletion_deadline=after(110), reason="DeletionByTaintManager")
    story.later(62).see(story.workers[0], lost).settle()
    assert (story.phase, story.status.restarts_counted) == (Phase.RESTARTING, 0)
    assert story.status.last_failure is not None
    assert (story.status.last_failure.node, story.status.last_failure.reason) == ("node-7", "DeletionByTaintManager")


def test_a_peer_that_has_disappeared_is_the_cause_of_a_secondary_failure() -> None:
    story = running(restartPolicy={"maxRestarts": 0}).later(5).see(secondary(0, seconds=4))
    story.step()
    assert (story.phase, story.status.restarts_counted) == (Phase.RESTARTING, 0)
    assert story.status.last_failure is not None
    assert story.status.last_failure.reason == "WorkerLost"


def test_a_group_part_of_which_never_ran_restarts_without_counting() -> None:
    story = Story(running(restartPolicy={"maxRestarts": 0}).job.replace(status=Story().status))
    story.settle()
    text = "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined."
    story.see(secondary(0, text=text, reason="Error"), make_worker(1, state="Pending")).later(10).settle()
    assert (story.phase, story.status.restarts_counted, story.status.disruptions) == (Phase.RESTARTING, 0, 1)
    assert "pod job-1-0 failed" in story.condition("Restarting").message
    assert "1 pods of the group have not started; " in story.condition("Restarting").message


def test_an_ordinary_failure_counts_although_part_of_the_group_never_ran() -> None:
    story = Story()
    story.settle()
    story.see(make_worker(0, state="Failed"), make_worker(1, state="Pending")).settle()
    assert story.status.restarts_counted == 1
