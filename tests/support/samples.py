"""The TrainingJobs in manifests/samples."""

from pathlib import Path
from typing import Any

import yaml

from trainyard.protocol import constants

FOLDER = Path(__file__).parents[2] / "manifests" / "samples"


def sample(name: str, *, steps: int | None = None) -> dict[str, Any]:
    """A sample, made shorter if `steps` says so."""
    body: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    if steps is not None:
        trainer = body["spec"]["trainer"]
        trainer["stop"] = {"steps": steps}
        trainer["schedule"] = {**trainer.get("schedule", {}), "warmupSteps": 1}
        trainer["logEverySteps"] = 1
    return body


def _is_job(path: Path) -> bool:
    return any(body.get("kind") == constants.KIND for body in yaml.safe_load_all(path.read_text("utf-8")))


SAMPLES = sorted(path.stem for path in FOLDER.glob("*.yaml") if _is_job(path))
OF_CLAIMS = [name for name in SAMPLES if "persistentVolumeClaim" in str(sample(name)["spec"]["workers"])]
"""Those whose data is on a claim that users bring."""
TRAINED = [name for name in SAMPLES if "trainer" in sample(name)["spec"] and name not in OF_CLAIMS]
"""Those of the built-in trainer with data of the trainer's image."""
