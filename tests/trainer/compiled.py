"""Entry points of pods whose blocks are compiled, without the minute that generating code takes."""

import json
import os
from typing import Any

from trainyard_trainer.launcher import main as launcher_main
from trainyard_trainer.parallel import compilation
from trainyard_trainer.train import Trainer


def count() -> None:
    """Graphs of forward and backward passes are traced, partitioned and run as by the compiler, but by PyTorch's
    kernels; each rank prints how many graphs it has, and how often tracing a block was given up.
    """
    from torch._dynamo.utils import counters

    compilation.BACKEND = "aot_eager_decomp_partition"
    run = Trainer.run

    def counted(self: Trainer) -> Any:
        run(self)
        graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        os.write(1, f"{json.dumps({'compiled': {'graphs': graphs, 'breaks': breaks}})}\n".encode())

    Trainer.run = counted  # type: ignore[method-assign]
    launcher_main.main()


def pending_inputs() -> None:
    """The fault that `compilation._wait` prevents: blocks are given tensors whose collective is still running."""
    compilation._wait = lambda *_: None
    count()
