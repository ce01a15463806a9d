"""Python imports this before everything else in the pods of the fault tests (PYTHONPATH): the image stays as it is.

Each rank prints which samples it reads for each step, takes at least TRAINYARD_TEST_STEP_SECONDS for
it, and runs the file fault-RANK.py, once, if a test puts one onto the checkpoint volume.
"""

import contextlib
import importlib.abc
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BATCHES = "trainyard_trainer.data.batches"


class Hook(importlib.abc.MetaPathFinder):
    """Changes one module as soon as it is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != BATCHES:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module: Any) -> None:
            execute(module)
            change(module.Batches)

        spec.loader.exec_module = execute_and_change
        return spec


def change(batches: Any) -> None:
    draw = batches._draw

    def draw_and_tell(self: Any, step: int) -> Any:
        rank, attempt = int(os.environ["RANK"]), int(os.environ["TRAINYARD_ATTEMPT"])
        fault = Path(os.environ["TRAINYARD_CHECKPOINTS"], f"fault-{rank}.py")
        if fault.exists():
            code = fault.read_text()
            fault.unlink()
            exec(code, {})
        time.sleep(float(os.environ["TRAINYARD_TEST_STEP_SECONDS"]))
        numbers, missing = draw(self, step)
        message = f"rank {rank} has drawn the samples of step {step + 1}"
        who = {"attempt": attempt, "step": step + 1, "rank": rank}
        with contextlib.suppress(BrokenPipeError):  # no reader is left: not a fault of the program
            os.write(1, json.dumps({"message": message, **who, "drawn": numbers.tolist()}).encode() + b"\n")
        return numbers, missing

    batches._draw = draw_and_tell


sys.meta_path.insert(0, Hook())
