"""torch names without documentation are used in one module, for one version of torch."""

from pathlib import Path

import torch

import trainyard_trainer
from trainyard_trainer.runtime.torch_internals import TORCH_VERSION

FOLDER = Path(trainyard_trainer.__file__).parent
INTERNALS = (
    "torch._C",
    "_functional_collectives",
    "torch._foreach",
    "DeviceMesh._",
    "._flatten(",
    "_prctl",
    "__create_chunk_list__",
    "._Options",
    "DefaultStager(",
)


def test_the_installed_torch_is_the_one_that_the_internals_were_checked_against() -> None:
    assert torch.__version__.partition("+")[0] == TORCH_VERSION


def test_no_other_module_uses_internals_of_torch() -> None:
    users = {
        str(path.relative_to(FOLDER))
        for path in FOLDER.rglob("*.py")
        if any(name in path.read_text() for name in INTERNALS)
    }
    assert users == {"runtime/torch_internals.py"}
