"""spec.trainer.precision: auto is bfloat16 on GPUs and float32 elsewhere, and no rank ever reads auto."""

import pytest

from tests.builders import make_job, trainer_spec
from trainyard.config import RunConfig
from trainyard.resolve import resolve

GPU = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


def config(workers: dict[str, object], **trainer: str) -> RunConfig:
    return resolve(make_job(workers=workers, trainer=trainer_spec(**trainer)))


@pytest.mark.parametrize(
    ("workers", "given", "resolved"),
    [
        (GPU, {}, "bfloat16"),
        (GPU, {"precision": "auto"}, "bfloat16"),
        (GPU, {"precision": "float32"}, "float32"),
        ({}, {}, "float32"),
        ({}, {"precision": "bfloat16"}, "bfloat16"),
        ({"resources": {"limits": {"nvidia.com/gpu": 0}, "requests": {"cpu": 1}}}, {}, "float32"),
    ],
)
def test_auto_is_resolved_by_the_resources_of_the_workers(
    workers: dict[str, object], given: dict[str, str], resolved: str
) -> None:
    found = config(workers, **given)
    assert found.precision == resolved
    # An image of an earlier version reads it here, and does not know auto.
    assert found.to_dict()["trainer"]["precision"] == resolved


def test_auto_is_float32_with_privacy_also_on_gpus() -> None:
    privacy = {"epsilon": 3, "delta": 1e-6}
    job = make_job(workers=GPU, trainer=trainer_spec(privacy=privacy), checkpoint={"volume": {"emptyDir": {}}})
    assert resolve(job).precision == "float32"
