"""The cache: what is newer stands, what is gone stays gone, and a list repairs the rest."""

from typing import Any

import pytest

from tests.builders import NOW, make_job, make_pod, make_progress
from tests.support import kubelet
from trainyard.protocol import constants
from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason
from trainyard_operator.controller.cache import Cache, CachedPod
from trainyard_operator.lifecycle.observation import CreationError, WorkerState

KEY = ("default", "job")


def known_job(cache: Cache) -> TrainingJob:
    entry = cache.get(KEY)
    assert entry is not None
    assert entry.job is not None
    return entry.job


def known_pods(cache: Cache) -> dict[str, str]:
    """Resource versions of the job's pods, by name."""
    entry = cache.get(KEY)
    assert entry is not None
    return {name: str(worker.resource_version) for name, worker in entry.workers.items()}


def replace(cache: Cache, jobs: list[TrainingJob], pods: list[dict[str, Any]], version: int) -> int:
    """Give the cache a complete list."""
    return cache.replace(jobs, [known for pod in pods if (known := CachedPod.read(pod))], version)


def filled(*pods: dict[str, Any]) -> Cache:
    cache = Cache()
    cache.put_job(make_job(version=10))
    for pod in pods or (make_pod(make_job(), 0, version=10), make_pod(make_job(), 1, version=11)):
        cache.put_pod(pod)
    return cache


def test_an_older_version_of_a_job_never_replaces_a_newer_one() -> None:
    cache = Cache()
    for version in (9, 10, 8):
        cache.put_job(make_job(version=version))
    assert known_job(cache).metadata.resource_version == "10"


def test_versions_are_compared_as_numbers() -> None:
    cache = Cache()
    for version in (9, 100, 99):
        cache.put_job(make_job(version=version))
    assert known_job(cache).metadata.resource_version == "100"


def test_an_older_version_of_a_pod_never_replaces_a_newer_one() -> None:
    cache = filled()
    cache.put_pod(make_pod(make_job(), 0, version=9))
    cache.put_pod(make_pod(make_job(), 1, version=12))
    assert known_pods(cache) == {"job-1-0": "10", "job-1-1": "12"}


def test_a_deleted_object_is_not_brought_back_by_a_late_response() -> None:
    cache = filled()
    cache.remove_pod(make_pod(make_job(), 0, version=20))
    cache.put_pod(make_pod(make_job(), 0, version=19))
    assert known_pods(cache) == {"job-1-1": "11"}
    cache.remove_job(KEY, "uid-1")
    cache.put_job(make_job(version=30))
    assert cache.get(KEY) is None


def test_a_namesake_replaces_a_deleted_job_and_starts_afresh() -> None:
    cache = filled()
    entry = cache.get(KEY)
    assert entry is not None
    entry.progress, entry.creation_error = make_progress(), CreationError(Reason.PODS_REFUSED, "quota")
    cache.put_job(make_job(uid="uid-2", version=20))
    assert known_job(cache).metadata.uid == "uid-2"
    assert [entry.progress, entry.creation_error] == [None, None]
    cache.remove_job(KEY, "uid-1")
    assert known_job(cache).metadata.uid == "uid-2", "the late deletion concerns the old one"


def test_a_late_event_of_the_old_job_does_not_replace_its_namesake() -> None:
    """Streams are in order per object only: the old one's last events may come after the new one's first."""
    cache = Cache()
    cache.put_job(make_job(uid="uid-2", version=20))
    cache.put_job(make_job(uid="uid-1", version=19))
    assert known_job(cache).metadata.uid == "uid-2"


def test_a_late_event_of_an_old_pod_does_not_replace_its_namesake() -> None:
    cache = filled(make_pod(make_job(), 0, uid="new", version=20))
    cache.put_pod(make_pod(make_job(), 0, uid="old", version=19))
    assert known_pods(cache) == {"job-1-0": "20"}
    cache.remove_pod(make_pod(make_job(), 0, uid="old", version=21))
    assert known_pods(cache) == {"job-1-0": "20"}


def test_pods_of_a_namesake_do_not_count_as_the_jobs_own() -> None:
    old = make_job(uid="uid-0")
    cache = filled(make_pod(old, 0, version=5), make_pod(make_job(), 1, version=6))
    assert [w.name for w in cache.workers(KEY)] == ["job-1-1"]


def test_all_looks_share_one_observation_until_a_pod_changes() -> None:
    cache = filled()
    first = cache.workers(KEY)
    assert cache.workers(KEY) is first
    cache.put_pod(make_pod(make_job(), 1, version=12))
    assert cache.workers(KEY) is not first
    assert cache.workers(KEY)[0] is first[0], "only what has changed is made again"


def test_a_pod_is_copied_once_for_what_its_launcher_says() -> None:
    cache = filled()
    entry = cache.get(KEY)
    assert entry is not None
    entry.launcher_states["pod-1-0"] = PodState(attempt=2)
    seen = cache.workers(KEY)
    assert [worker.running_attempt for worker in seen] == [2, 1]
    assert all(a is b for a, b in zip(seen, cache.workers(KEY), strict=True))
    entry.unresponsive.add("pod-1-0")
    assert [worker.unresponsive for worker in cache.workers(KEY)] == [True, False]
    entry.launcher_states["pod-1-0"] = PodState(attempt=3)
    assert [worker.running_attempt for worker in cache.workers(KEY)] == [3, 1]


def test_pods_are_counted_by_attempt_and_state() -> None:
    cache = filled(*(make_pod(make_job(), index, version=10 + index) for index in range(3)))
    entry = cache.get(KEY)
    assert entry is not None
    cache.put_pod(make_pod(make_job(), 0, version=20, status=kubelet.running(NOW)))
    cache.put_pod(make_pod(make_job(), 0, attempt=2, version=21))
    assert [entry.count(1, WorkerState.PENDING), entry.count(1), entry.count(2)] == [2, 3, 1]
    cache.remove_pod(make_pod(make_job(), 0, version=22))
    assert [entry.count(1, WorkerState.RUNNING), entry.count(1)] == [0, 2]
    replace(cache, [make_job(version=10)], [], 50)
    assert entry._tally == {}


def test_pods_may_be_seen_before_their_job() -> None:
    cache = Cache()
    assert cache.put_pod(make_pod(make_job())) == KEY
    assert cache.get(KEY) is None
    assert len(cache) == 0
    cache.put_job(make_job())
    assert [w.index for w in cache.workers(KEY)] == [0]


def test_a_job_and_all_its_pods_leave_nothing_behind() -> None:
    cache = filled()
    cache.remove_job(KEY, "uid-1")
    for index in range(2):
        cache.remove_pod(make_pod(make_job(), index))
    assert cache._entries == {}


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {constants.LABEL_JOB: "job"},
        {constants.LABEL_JOB: "job", constants.LABEL_ATTEMPT: "1", constants.LABEL_INDEX: "0"},
        {
            constants.LABEL_JOB: "job",
            constants.LABEL_ATTEMPT: "one",
            constants.LABEL_INDEX: "0",
            constants.LABEL_REPLICAS: "2",
        },
        {
            constants.LABEL_JOB: "job",
            constants.LABEL_ATTEMPT: "1",
            constants.LABEL_INDEX: "-1",
            constants.LABEL_REPLICAS: "2",
        },
        {
            constants.LABEL_JOB: "job",
            constants.LABEL_ATTEMPT: "100000",
            constants.LABEL_INDEX: "0",
            constants.LABEL_REPLICAS: "2",
        },
    ],
    ids=["none", "job only", "no replicas", "attempt in words", "negative index", "attempt that no name can hold"],
)
def test_a_pod_with_invalid_labels_is_ignored(labels: dict[str, str]) -> None:
    """Anybody may put labels on a pod."""
    pod = make_pod(make_job(), version=5)
    pod["metadata"]["labels"] = labels
    cache = filled(make_pod(make_job(), 1, version=4))
    assert cache.put_pod(pod) is None
    assert replace(cache, [make_job(version=10)], [pod, make_pod(make_job(), 1, version=4)], 20) == 0
    assert replace(cache, [make_job(version=10)], [pod, make_pod(make_job(), 1, version=4)], 21) == 0
    assert cache.remove_pod(pod) is None


# --- complete lists -------------------------------------------------------------------------------------------


def test_a_list_that_holds_what_is_known_has_missed_nothing() -> None:
    cache = filled()
    pods = [make_pod(make_job(), 0, version=10), make_pod(make_job(), 1, version=11)]
    assert not cache.primed
    assert replace(cache, [make_job(version=10)], pods, 50) == 0
    assert cache.primed


def test_a_list_counts_and_repairs_what_was_missed() -> None:
    cache = filled()
    pods = [make_pod(make_job(), 1, version=30), make_pod(make_job(), 2, version=31)]
    missed = replace(cache, [make_job(version=29)], pods, 50)
    assert missed == 4  # the job and pod 1 are newer, pod 2 is new, pod 0 is gone
    assert known_pods(cache) == {"job-1-1": "30", "job-1-2": "31"}
    assert known_job(cache).metadata.resource_version == "29"


def test_a_list_removes_a_job_that_is_gone() -> None:
    cache = filled()
    assert replace(cache, [], [], 50) == 3
    assert cache.get(KEY) is None


def test_a_list_of_the_jobs_of_a_namespace_removes_those_alone() -> None:
    cache = filled()
    cache.put_job(make_job("changed", uid="uid-2", version=11))
    cache.put_job(make_job("known", uid="uid-3", version=12))
    cache.put_job(make_job(uid="uid-4", namespace="other", version=13))
    listed = [make_job("changed", uid="uid-2", version=20), make_job("known", uid="uid-3", version=12)]
    assert cache.replace_jobs(listed, 50, "default") == {KEY, ("default", "changed")}
    assert {key for key, _ in cache.jobs()} == {("default", "changed"), ("default", "known"), ("other", "job")}
    assert cache.count_missed([*listed, make_job(uid="uid-4", namespace="other", version=13)], [], 5) == (0, 0)
    assert not cache.primed, "nothing is known of the pods"


def test_what_was_seen_after_the_list_stays() -> None:
    cache = filled()
    cache.put_pod(make_pod(make_job(), 2, version=60))
    cache.put_job(make_job("later", uid="uid-9", version=61))
    pods = [make_pod(make_job(), 0, version=10), make_pod(make_job(), 1, version=11)]
    assert replace(cache, [make_job(version=10)], pods, 50) == 0
    assert "job-1-2" in known_pods(cache)
    assert cache.get(("default", "later")) is not None


def test_what_was_deleted_after_the_list_was_not_missed_and_does_not_come_back() -> None:
    cache = filled()
    pods = [make_pod(make_job(), 0, version=10), make_pod(make_job(), 1, version=11)]
    cache.remove_pod(make_pod(make_job(), 0, version=55))
    assert replace(cache, [make_job(version=10)], pods, 50) == 0
    assert known_pods(cache) == {"job-1-1": "11"}
    cache.remove_job(KEY, "uid-1")
    cache.remove_pod(make_pod(make_job(), 1, version=57))
    assert replace(cache, [make_job(version=10)], pods, 50) == 0
    assert cache.get(KEY) is None


def test_a_namesake_made_after_the_list_was_not_missed() -> None:
    cache = filled()
    cache.put_job(make_job(uid="uid-2", version=60))
    assert replace(cache, [make_job(version=10)], [], 12) == 2  # the two pods, which really are gone
    assert known_job(cache).metadata.uid == "uid-2"
