"""The device of a rank: the GPU that its worker is promised, and never a CPU in its place."""

import pytest
import torch

from trainyard.protocol import constants
from trainyard.protocol.gpu_faults import find_gpu_fault
from trainyard_trainer.runtime import world
from trainyard_trainer.runtime.errors import ConfigError


@pytest.fixture(autouse=True)
def _without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(constants.ENV_DEVICE, raising=False)


def build_torch(monkeypatch: pytest.MonkeyPatch, *, cuda: str | None = None, hip: str | None = None) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)


def test_a_rank_that_is_promised_no_gpu_computes_on_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world._device(0) == torch.device("cpu")
    monkeypatch.setenv(constants.ENV_DEVICE, "")  # a run without a cluster
    assert world._device(0) == torch.device("cpu")


@pytest.mark.parametrize(
    ("resource", "cuda", "hip", "built_for"),
    [
        ("nvidia.com/gpu", None, None, "CPUs"),
        ("amd.com/gpu", "13.0", None, "CUDA"),
        ("nvidia.com/mig-1g.5gb", None, "7.0", "ROCm"),
        (constants.DEVICE_CLAIM, None, None, "CPUs"),
    ],
)
def test_an_image_for_other_devices_is_refused(
    monkeypatch: pytest.MonkeyPatch, resource: str, cuda: str | None, hip: str | None, built_for: str
) -> None:
    build_torch(monkeypatch, cuda=cuda, hip=hip)
    monkeypatch.setenv(constants.ENV_DEVICE, resource)
    with pytest.raises(ConfigError) as error:
        world._device(0)
    assert str(error.value) == (
        f"spec.image: its torch is built for {built_for}, but the worker has {resource}; use an image with torch for "
        "CUDA (GPUs of NVIDIA) or ROCm (GPUs of AMD)"
    )


@pytest.mark.parametrize(
    ("resource", "cuda", "hip"),
    [
        ("nvidia.com/gpu", "13.0", None),
        ("nvidia.com/mig-1g.5gb", "13.0", None),
        ("amd.com/gpu", None, "7.0"),
        (constants.DEVICE_CLAIM, "13.0", None),
        (constants.DEVICE_CLAIM, None, "7.0"),
    ],
)
def test_a_node_whose_gpu_cannot_be_used_is_known_as_such(
    monkeypatch: pytest.MonkeyPatch, resource: str, cuda: str | None, hip: str | None
) -> None:
    build_torch(monkeypatch, cuda=cuda, hip=hip)
    monkeypatch.setenv(constants.ENV_DEVICE, resource)
    with pytest.raises(RuntimeError, match=f"the worker has {resource}, but torch sees no GPU") as error:
        world._device(0)
    fault = find_gpu_fault(f"RuntimeError: {error.value}")
    assert fault is not None
    assert fault.hardware
