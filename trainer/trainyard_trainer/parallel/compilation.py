"""torch.compile, block by block: all blocks are alike, so one is compiled and the others find it in the cache."""

import os
import shutil

from trainyard_trainer.data.tokens import cache_folder
from trainyard_trainer.models.transformer import Transformer
from trainyard_trainer.runtime.errors import ConfigError


def compile_blocks(part: Transformer) -> None:
    """Compile each block in place; names of parameters stay.

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
    for block in part.layers():
        block.compile()
