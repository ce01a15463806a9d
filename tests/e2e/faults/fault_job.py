"""A job of the fault tests: its manifest, and access to its pods, processes and checkpoints."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import ClusterError
from tests.e2e.faults.run_trace import RunTrace
from tests.e2e.namespace import Body, Namespace, OperatorPod, eventually, trainer_job
from tests.e2e.node_faults import NodeFaults, Volume

STEPS = 80
EVERY = 15
"""Steps from one checkpoint to the next."""
AT = 35
"""Step after which the fault is injected."""
STEP_SECONDS = 0.06
"""Minimum seconds of a step, so that a run lasts long enough for a fault on any machine."""
HOOK = Path(__file__).parent / "hook" / "sitecustomize.py"


def hook() -> Body:
    """Return the ConfigMap with the module that the pods import first."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "hook"},
        "data": {HOOK.name: HOOK.read_text("utf-8")},
    }


def make_job(name: str, checkpoint: Body, *, steps: int = STEPS, pace: float = STEP_SECONDS, **spec: Any) -> Body:
    """Return a job of a small model with two workers, whose pods import the hook."""
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
            {"name": "TRAINYARD_TEST_STEP_SECONDS", "value": str(pace)},
        ],
        checkpoint={"everySteps": EVERY, "async": False, **checkpoint},
        **{"restartPolicy": {"maxRestarts": 1, "backoff": {"initialSeconds": 0}}, **spec},
    )
    body["spec"]["trainer"]["logEverySteps"] = 1
    return body


@dataclass
class RunningJob:
    """A running job, with access to its processes and its checkpoint volume."""

    namespace: Namespace
    node_faults: NodeFaults
    name: str
    volume: Volume

    def pod(self, index: int = 1) -> Body:
        """Return a pod of the first attempt."""
        return self.namespace.get("pod", f"{self.name}-1-{index}")

    def pods(self) -> list[Body]:
        """Return the existing pods of all attempts."""
        return self.namespace.objects("pods", f"trainyard.dev/job-name={self.name}")

    @property
    def checkpoints(self) -> Path:
        """Folder of the job on its volume."""
        return self.volume.here / self.name

    def in_rank(self, rank: int, code: str) -> None:
        """Make a rank run some Python before its next step."""
        file = self.fault(rank)
        part = file.with_suffix(".part")
        part.write_text(code)
        part.chmod(0o644)
        part.rename(file)

    def fault(self, rank: int) -> Path:
        """Return the file of the code that a rank runs next; the rank removes it after reading."""
        return self.checkpoints / f"fault-{rank}.py"


@dataclass
class FaultJob(RunningJob):
    """A running job with the operator and with the trace of its logs."""

    operator: OperatorPod
    trace: RunTrace

    def samples_in_manifests(self) -> dict[int, int]:
        """Return by step the number of samples drawn, of each complete checkpoint."""
        manifests = [json.loads(p.read_text()) for p in self.checkpoints.glob("step-????????/manifest.json")]
        return {manifest["step"]: manifest["samples"] for manifest in manifests}

    def await_step(self, step: int) -> None:
        """Wait until rank 0 has logged a step."""
        eventually(f"{self.name} at step {step}", lambda: self.trace.step >= step, timeout=90, interval=0.02)

    def await_warning(self, words: str) -> None:
        """Wait until a rank has logged a warning."""
        eventually(words, lambda: any(words in warning for warning in self.trace.warnings), interval=0.02)

    def kill_operator(self) -> None:
        """Kill the operator's process with SIGKILL; the kubelet starts another one."""
        [name] = eventually("an operator", self.operator.names)
        self.node_faults.signal(self.node_faults.launcher(self.operator.namespace.get("pod", name)))

    def await_end(self, timeout: float = 120) -> Body:
        """Wait for success, and return the status. The API server may be away meanwhile."""
        deadline = time.monotonic() + timeout
        while True:
            with suppress(ClusterError):
                return self.namespace.await_phase(self.name, "Succeeded", timeout=deadline - time.monotonic())
            assert time.monotonic() < deadline
