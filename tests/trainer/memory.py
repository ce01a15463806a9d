"""Entry point of pods that measure the memory which training allocates on their ranks."""

import ctypes
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from trainyard_trainer import rank_process
from trainyard_trainer.launcher import main as launcher_main
from trainyard_trainer.optim import muon
from trainyard_trainer.optim.update import LocalUpdate
from trainyard_trainer.parameter_server import ParameterServer, RemoteUpdate
from trainyard_trainer.train import Trainer

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
THRESHOLD = 2**18


def main() -> None:
    """Run a pod whose ranks print a line of measurements, in bytes, after each step."""
    rank_process.keep_freed_memory = lambda: None  # type: ignore[attr-defined]
    # glibc then returns every larger block to the kernel at once, so that resident memory is what is allocated. With
    # the allocator of a worker (`runtime.allocator`), memory that it keeps comes on top, which the estimate leaves out.
    libc = ctypes.CDLL(None)
    assert libc.mallopt(M_MMAP_THRESHOLD, THRESHOLD)
    assert libc.mallopt(M_TRIM_THRESHOLD, THRESHOLD)
    muon.ITERATIONS = 2  # the third one needs no more memory than the second, but seconds of a CPU
    Trainer.__init__ = _measured_start(Trainer.__init__)  # type: ignore[method-assign]
    Trainer._forward_backward = _measured(Trainer._forward_backward, "passes")  # type: ignore[method-assign]
    LocalUpdate.apply_gradients = _measured_update(LocalUpdate.apply_gradients)  # type: ignore[method-assign]
    RemoteUpdate.step = _measured_round(RemoteUpdate.step)  # type: ignore[method-assign]
    ParameterServer.__init__ = _measured_start(ParameterServer.__init__)  # type: ignore[method-assign]
    Trainer._evaluate = _measured_evaluation(Trainer._evaluate)  # type: ignore[method-assign]
    launcher_main.main()


_figures: dict[str, int] = {}


def _measured_start(start: Any) -> Any:
    def measured(started: Trainer | ParameterServer, *arguments: Any) -> None:
        _figures["before"] = _resident("RssAnon")
        start(started, *arguments)

    return measured


def _measured(action: Any, name: str) -> Any:
    """Measure an action: the peak of resident memory beyond what was resident before the trainer or server."""

    def measured(*arguments: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        result = action(*arguments)
        files = _resident("RssFile") + _resident("RssShmem")
        _figures[name] = _resident("VmHWM") - files - _figures["before"]
        return result

    return measured


def _measured_update(apply: Any) -> Any:
    """Measure the optimizer's step; gradients are complete before it."""

    def measured(update: LocalUpdate, learning_rate: float) -> Any:
        _figures["weights"] = _held(update._parameters)
        _figures["gradients"] = _held(p.grad for p in update._parameters if p.grad is not None)
        norm = _measured(apply, "step")(update, learning_rate)
        states = [s for part in update._optimizers.parts for state in part.state.values() for s in state.values()]
        _figures["optimizer"] = _held(s for s in states if torch.is_tensor(s) and s.numel() > 1)
        _print()
        return norm

    return measured


def _measured_round(step: Any) -> Any:
    """Measure the exchange with the parameter server; gradients are complete before it."""

    def measured(update: RemoteUpdate, learning_rate: float) -> Any:
        _figures["weights"] = _held([update._flat.parameters])
        _figures["gradients"] = _held([update._flat.gradients])
        _figures["optimizer"] = 0
        norm = _measured(step, "step")(update, learning_rate)
        _print()
        return norm

    return measured


def _measured_evaluation(evaluate: Any) -> Any:
    def measured(*arguments: Any) -> None:
        _measured(evaluate, "evaluation")(*arguments)
        _print()

    return measured


def _print() -> None:
    line = json.dumps({"memory": {"rank": int(os.environ["RANK"]), **_figures}})
    os.write(1, f"{line}\n".encode())  # in one write, so that lines of ranks do not mix


def _resident(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _held(tensors: Iterable[Any]) -> int:
    """Return the bytes of the distinct storages of some tensors."""
    local = [t.to_local() if isinstance(t, DTensor) else t.detach() for t in tensors]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values())
