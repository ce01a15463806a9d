"""What the operator costs at the start: create -> first step, against the same two pods applied by hand."""

import copy
import json
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.world import Body, World, eventually, trainer_job
from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.children import build_config_map, build_service
from trainyard_operator.manifests.pod import build_pod

# A benchmark of two pods; that they start at all is test_training.py, which prints the same times of its jobs.
pytestmark = [pytest.mark.e2e, pytest.mark.extended]

PAIRS = 2
_CLEAN_BARE = ("pods,services,configmaps", "-l", "trainyard.dev/job-name")
_CLEAN_JOB = ("tj", "--all")


def _bare(job: Body, namespace: str, image: str) -> list[Body]:
    """The children of a job as a user would write them by hand: the same pods, owned by nobody."""
    body = copy.deepcopy(job)
    body["metadata"] |= {"namespace": namespace, "uid": "none"}
    parsed = TrainingJob.from_dict(body)
    config = build_config_map(parsed)
    assert config is not None
    pods = [build_pod(parsed, 1, i, trainer_image=image) for i in range(parsed.spec.workers.replicas)]
    children = [build_service(parsed), config, *pods]
    for child in children:
        del child["metadata"]["ownerReferences"]
    return children


def _seconds_to_first_step(world: World, name: str, bodies: list[Body], clean: tuple[str, ...]) -> float:
    """Apply, wait for the first step in the log of rank 0, and delete all again (arguments of kubectl delete)."""
    start = time.time()
    world.apply(*bodies)

    def first_step() -> float | None:
        for line in world.kubectl("logs", f"{name}-1-0", check=False).splitlines():
            if line.startswith("{") and (entry := json.loads(line)).get("step") == 1:
                return datetime.fromisoformat(entry["time"]).timestamp()
        return None

    at = eventually(f"{name}: first step", first_step, timeout=90, interval=0.5)
    world.kubectl("delete", *clean, "--wait=false")
    eventually(f"{name}: pods gone", lambda: not world.objects("pods"))
    return at - start


def test_the_operator_adds_little_to_the_start_of_two_pods(
    world: World, trainer_image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, managed = [], []
    for i in range(PAIRS):
        job = trainer_job(f"bare{i}", steps=1)
        bare.append(_seconds_to_first_step(world, f"bare{i}", _bare(job, world.namespace, trainer_image), _CLEAN_BARE))
        job = trainer_job(f"job{i}", steps=1)
        managed.append(_seconds_to_first_step(world, f"job{i}", [job], _CLEAN_JOB))
    reference, value = sorted(bare)[PAIRS // 2], sorted(managed)[PAIRS // 2]
    row = {"case": "create to first step, 2 pods", "value": round(value, 2), "unit": "s"}
    row |= {"reference": "bare pods", "reference_value": round(reference, 2), "ratio": round(value / reference, 3)}
    target = Path("build/bench/start.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([row], indent=2) + "\n", "utf-8")
    with capsys.disabled():
        print(f"\ncreate -> first step: TrainingJob {value:.1f} s, bare pods {reference:.1f} s ({row['ratio']:.2f} x)")
    assert value < reference + 3, "the operator's own share of the start is a fraction of a second"
