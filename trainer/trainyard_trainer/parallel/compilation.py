"""torch.compile, block by block: all blocks are alike, so that one is compiled and the others are cache hits."""

import os
import shutil

from trainyard_trainer.data.preparation import cache_folder
from trainyard_trainer.models.family import ParallelPlan
from trainyard_trainer.runtime.errors import ConfigError


def compile_blocks(plan: ParallelPlan) -> None:
    """Compile each block in place; the names of parameters do not change.

    Raises:
        ConfigError: there is no C++ compiler, which the generated code needs (on a GPU, too, to start its kernels).
    """
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError(
            "spec.trainer.compile: there is no C++ compiler (g++) in the worker; remove it, or use an image that has "
            "one, as the trainer image has"
        )
    # torch would name the folder after the user, and in a container the user has no name.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    for block in plan.layers():
        block.compile()
