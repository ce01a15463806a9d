"""Muon against torch's, and its work divided among ranks in every way that a matrix can be divided."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode

from trainyard.net import free_port
from trainyard_trainer.optim.muon import Muon, orthogonalize
from trainyard_trainer.runtime.torch_internals import use_one_gloo_thread

SHAPES = ((16, 16), (8, 24), (24, 8), (16, 16), (7, 12), (16, 16))
OPTIONS: dict[str, Any] = {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True}
STEPS = 3


def values(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def torchs() -> list[torch.Tensor]:
    """Matrices after some steps of torch's Muon."""
    parameters = [nn.Parameter(value) for value in values(0)]
    optimizer = torch.optim.Muon(parameters, 0.1, adjust_lr_fn="match_rms_adamw", **OPTIONS)
    train(parameters, optimizer)
    return [parameter.detach() for parameter in parameters]


def train(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    for step in range(STEPS):
        for parameter, gradient in zip(parameters, values(1 + step), strict=True):
            parameter.grad = gradient
            if isinstance(parameter, DTensor):
                local = distribute_tensor(gradient, parameter.device_mesh, parameter.placements, src_data_rank=None)
                parameter.grad = local
        optimizer.step()


def assert_close(found: Sequence[torch.Tensor]) -> None:
    for one, other in zip(found, torchs(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.004)  # of updates of size 0.06 in bfloat16


def test_updates_are_those_of_torch() -> None:
    parameters = [nn.Parameter(value) for value in values(0)]
    train(parameters, Muon(parameters, 0.1, **OPTIONS))
    assert_close([parameter.detach() for parameter in parameters])


def test_singular_values_become_about_one() -> None:
    x = torch.randn(3, 40, 20, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalize(x.bfloat16()).float())
    assert 0.6 < singular.min() < singular.max() < 1.3


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the collectives of a step."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += "c10d" in str(func)
        return func(*args, **(kwargs or {}))


class Bag(nn.Module):
    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.matrices = nn.ParameterList(parameters)


LAYOUTS = {"ddp": 1, "fsdp": 2, "hsdp": 3, "tensor": 4}
"""Collectives for matrices of one shape: two for each divided axis, one for replicas."""


def rank_main(rank: int, port: int) -> None:
    """One of four ranks."""
    use_one_gloo_thread()
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    line = init_device_mesh("cpu", (4,))
    for layout, collectives_per_kind in LAYOUTS.items():
        bag = Bag([nn.Parameter(value) for value in values(0)])
        if layout == "fsdp":
            fully_shard(bag, mesh=line)
        elif layout == "hsdp":
            fully_shard(bag, mesh=square)
        elif layout == "tensor":
            for number, value in enumerate(values(0)):
                dim = 1 if value.shape[0] % 2 else number % 2
                part = distribute_tensor(value, square["inner"], [Shard(dim)], src_data_rank=None)
                bag.matrices[number] = nn.Parameter(part)
            fully_shard(bag, mesh=square["outer"])
        parameters = list(bag.matrices)
        optimizer = Muon(parameters, 0.1, **OPTIONS)
        if layout == "ddp":
            optimizer.replicas = dist.group.WORLD
        with Collectives() as collectives:  # type: ignore[no-untyped-call]
            train(parameters, optimizer)
        # Matrices that a tensor group divides by rows are of another kind than those that it divides by columns.
        kinds = 5 if layout == "tensor" else 4
        assert collectives.count == STEPS * kinds * collectives_per_kind, (layout, collectives.count)
        assert_close([p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in parameters])
    dist.destroy_process_group()


def test_divided_work_gives_the_same_updates_with_few_collectives() -> None:
    spawn(rank_main, (free_port(),), nprocs=4)  # type: ignore[no-untyped-call]
