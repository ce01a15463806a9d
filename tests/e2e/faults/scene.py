"""One job of the fault tests: how it is made, and what a fault may lay its hands on."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import ClusterError
from tests.e2e.faults.course import Course
from tests.e2e.node import Hands, Volume
from tests.e2e.world import Body, OperatorPod, World, eventually, trainer_job

STEPS = 80
EVERY = 15
"""Steps from one checkpoint to the next."""
AT = 35
"""Step at which the fault comes, or soon after."""
STEP_SECONDS = 0.06
"""Least time of a step: so a run lasts long enough for a fault, on any machine."""
HOOK = Path(__file__).parent / "hook" / "sitecustomize.py"


def hook() -> Body:
    """The ConfigMap with what the pods import before all else."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "hook"},
        "data": {HOOK.name: HOOK.read_text("utf-8")},
    }


def make_job(name: str, checkpoint: Body, *, steps: int = STEPS, pace: float = STEP_SECONDS, **spec: Any) -> Body:
    """A small model with two workers, whose pods import the hook."""
    template = {
        "volumes": [{"name": "hook", "configMap": {"name": "hook"}}],
        "containers": [{"name": "worker", "volumeMounts": [{"name": "hook", "mountPath": "/hook"}]}],
    }
    body = trainer_job(
        name,
        steps=steps,
        workers={
            "template": {"spec": template},
            "resources": {"requests": {"cpu": "400m"}},  # its share, whatever else runs on the machine
            **spec.pop("workers", {}),
        },
        env=[
            {"name": "PYTHONPATH", "value": "/hook"},
            {"name": "OMP_NUM_THREADS", "value": "1"},  # more of them would fight for two processors
            {"name": "TRAINYARD_TEST_STEP_SECONDS", "value": str(pace)},
        ],
        checkpoint={"everySteps": EVERY, "async": False, **checkpoint},
        **{"restartPolicy": {"maxRestarts": 1, "backoff": {"initialSeconds": 0}}, **spec},
    )
    body["spec"]["trainer"]["logEverySteps"] = 1
    return body


@dataclass
class Subject:
    """A running job whose processes and checkpoint volume are in reach."""

    world: World
    hands: Hands
    job: str
    volume: Volume

    def pod(self, index: int = 1) -> Body:
        """A pod of the first attempt."""
        return self.world.get("pod", f"{self.job}-1-{index}")

    def pods(self) -> list[Body]:
        """The pods of all attempts that there are."""
        return self.world.objects("pods", f"trainyard.dev/job-name={self.job}")

    @property
    def checkpoints(self) -> Path:
        """The job's folder on its volume."""
        return self.volume.here / self.job

    def in_rank(self, rank: int, code: str) -> None:
        """Have a rank run some Python before its next step."""
        file = self.fault(rank)
        part = file.with_suffix(".part")
        part.write_text(code)
        part.chmod(0o644)
        part.rename(file)

    def fault(self, rank: int) -> Path:
        """What a rank is to run; gone as soon as it has read it."""
        return self.checkpoints / f"fault-{rank}.py"


@dataclass
class Scene(Subject):
    """The same with the operator, and with a record of all that the job says."""

    operator: OperatorPod
    course: Course

    def samples_in_manifests(self) -> dict[int, int]:
        """Step and samples drawn of each complete checkpoint."""
        manifests = [json.loads(p.read_text()) for p in self.checkpoints.glob("step-????????/manifest.json")]
        return {manifest["step"]: manifest["samples"] for manifest in manifests}

    def await_step(self, step: int) -> None:
        """Wait until rank 0 has said that a step is done."""
        eventually(f"{self.job} at step {step}", lambda: self.course.step >= step, timeout=90, interval=0.02)

    def await_warning(self, words: str) -> None:
        """Wait until a rank has said something."""
        eventually(words, lambda: any(words in warning for warning in self.course.warnings), interval=0.02)

    def kill_operator(self) -> None:
        """Kill the operator's process without a warning; the kubelet starts another one."""
        [name] = eventually("an operator", self.operator.names)
        self.hands.signal(self.hands.launcher(self.operator.world.get("pod", name)))

    def await_end(self, timeout: float = 120) -> Body:
        """Wait for success; the status. The API server may be away meanwhile."""
        deadline = time.monotonic() + timeout
        while True:
            with suppress(ClusterError):
                return self.world.await_phase(self.job, "Succeeded", timeout=deadline - time.monotonic())
            assert time.monotonic() < deadline
