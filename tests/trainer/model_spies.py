"""Entry points of pods that record what a model does, or that give it a fault."""

import json
import os
import sys
from pathlib import Path

from torch import Tensor

from trainyard.protocol import constants
from trainyard_trainer.launcher import main as launcher_main
from trainyard_trainer.models.llama import rotary
from trainyard_trainer.train import Trainer


def rotary_types() -> None:
    """Record the types of the tables of rotary positions, and of what is rotated."""
    rotate = rotary.rotate
    found: set[tuple[str, str, str]] = set()

    def spy(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        types = (str(x_BHTE.dtype), str(cos_TE.dtype), str(sin_TE.dtype))
        if types not in found:
            found.add(types)
            path = Path(os.environ[constants.ENV_CONFIG]).with_name(f"rotary-{os.environ['RANK']}.json")
            path.write_text(json.dumps(sorted(found)))
        return rotate(x_BHTE, cos_TE, sin_TE)

    rotary.rotate = spy
    launcher_main.main()


def no_initial_values() -> None:
    """Fail as soon as initial values are computed."""

    def fail(self: Trainer) -> None:
        raise RuntimeError("initial values are computed")

    Trainer.initialize = fail  # type: ignore[method-assign]
    launcher_main.main()


def with_plugins() -> None:
    """Run with one more folder of modules, as PYTHONPATH would name it."""
    sys.path.insert(0, os.environ["TEST_PLUGINS"])
    launcher_main.main()
