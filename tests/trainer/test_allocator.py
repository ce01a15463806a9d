"""A worker keeps the memory that it has freed."""

import json
import platform
import resource

import torch

from tests.support.need import require
from tests.trainer.pods import Starter, finish, make_config
from trainyard_trainer.launcher import main as launcher_main
from trainyard_trainer.train import Trainer

MEGABYTES = 64
"""More than what glibc keeps by itself."""


def faults_of_new_memory() -> int:
    """Pages that the system has to give for memory of a size that was freed just before."""
    before = 0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(MEGABYTES << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def worker_that_counts() -> None:
    """Entry of a pod that says, after the training, what new memory costs."""
    run = Trainer.run

    def counted(self: Trainer) -> None:
        run(self)
        print(json.dumps({"faults": faults_of_new_memory()}), flush=True)

    Trainer.run = counted  # type: ignore[method-assign]
    launcher_main.main()


def test_a_worker_does_not_ask_the_system_for_memory_it_had(start: Starter) -> None:
    require(platform.libc_ver()[0] == "glibc", "glibc")
    pages = (MEGABYTES << 20) // resource.getpagesize()
    assert faults_of_new_memory() > pages / 2, "this process has glibc's defaults"
    (pod,) = start(make_config(), entry="tests.trainer.test_allocator:worker_that_counts")
    assert finish([pod]) == [0], pod.stderr
    (faults,) = [line["faults"] for line in map(json.loads, pod.stdout.splitlines()) if "faults" in line]
    assert faults < pages / 100
