"""Entry point of pods with two ranks that count the bytes that each rank sends in a step."""

import json
import os
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainyard_trainer.launcher import main as launcher_main
from trainyard_trainer.train import Trainer

# Share of the largest tensor of a call that one of two ranks sends.
SENT = {
    "_allgather_base_": ("all-gather", 1 / 2),
    "all_gather_into_tensor": ("all-gather", 1.0),  # sees the own half only
    "_reduce_scatter_base_": ("reduce-scatter", 1 / 2),
    "reduce_scatter_tensor": ("reduce-scatter", 1 / 2),
    "allreduce_": ("all-reduce", 1.0),
    "all_to_all_single": ("all-to-all", 1 / 2),
    "send": ("point-to-point", 1.0),
}


def main() -> None:
    """Run a pod whose ranks print the bytes that they sent in the second step, by collective."""
    accumulate = Trainer._forward_backward

    def counted(trainer: Trainer) -> Any:
        with _Count() as count:
            result = accumulate(trainer)
        if trainer.step == 1:
            line = json.dumps({"sent": {"rank": int(os.environ["RANK"]), **count.sent}})
            os.write(1, f"{line}\n".encode())  # in one write, so that lines of ranks do not mix
        return result

    Trainer._forward_backward = counted  # type: ignore[method-assign, assignment]
    launcher_main.main()


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation, those of collectives among them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: Counter[str] = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else checkpointing complains of a mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name, *_ = str(func).split(".")
        if "c10d" in namespace and name in SENT:
            collective, share = SENT[name]
            sizes = [t.numel() * t.element_size() for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
            self.sent[collective] += round(share * max(sizes))
        return func(*args, **(kwargs or {}))
