"""The manifests of docs/comparison.md: ours is admitted, and those of other projects are YAML."""

import re
from pathlib import Path

import yaml

from trainyard.admission import load_manifest

PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"


def test_the_manifests_of_the_comparison_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    kinds = [yaml.safe_load(block)["kind"] for block in blocks]
    assert kinds == ["TrainingJob", "PyTorchJob", "TrainJob", "JobSet", "Job"]
    job = load_manifest(blocks[0])
    assert job.spec.workers.replicas == 4
