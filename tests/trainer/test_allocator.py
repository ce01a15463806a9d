"""A worker keeps memory that it has freed, or returns it to the system."""

import json
import platform
import resource

import pytest
import torch

from tests.support.need import require
from tests.support.run_config import make_config
from tests.trainer.pods import Starter, finish
from trainyard_trainer.launcher import main as launcher_main
from trainyard_trainer.train import Trainer

MEGABYTES = 31
"""Size of a block that a worker may keep or return."""


def faults_of_new_memory() -> int:
    """Return the pages that the system provides for a block as large as one that was freed just before."""
    before = 0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(MEGABYTES << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def worker_that_counts() -> None:
    """Entry of a pod that prints, after the training, how many pages a new block takes."""
    run = Trainer.run

    def counted(self: Trainer) -> None:
        run(self)
        print(json.dumps({"faults": faults_of_new_memory()}), flush=True)

    Trainer.run = counted  # type: ignore[method-assign]
    launcher_main.main()


@pytest.mark.parametrize("keep", [True, False])
def test_a_worker_keeps_freed_memory_or_returns_it_as_the_memory_in_the_spec_demands(
    start: Starter, keep: bool
) -> None:
    require(platform.libc_ver()[0] == "glibc", "glibc")
    pages = (MEGABYTES << 20) // resource.getpagesize()
    config = make_config()
    config = config.replace(memory_use=config.memory_use.replace(keep_freed=keep))
    (pod,) = start(config, entry="tests.trainer.test_allocator:worker_that_counts")
    assert finish([pod]) == [0], pod.stderr
    (faults,) = [line["faults"] for line in map(json.loads, pod.stdout.splitlines()) if "faults" in line]
    assert faults < pages / 100 if keep else faults > pages / 2
