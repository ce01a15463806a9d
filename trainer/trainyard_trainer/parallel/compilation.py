"""torch.compile, block by block: all blocks are alike, so that one is compiled and the others are cache hits."""

import os
import shutil
from typing import Any

import torch
from torch import Tensor, nn

from trainyard_trainer.data.downloads import cache_folder
from trainyard_trainer.models.family import ParallelPlan
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.torch_internals import AsyncCollectiveTensor, overlap_tensor_collectives

BACKEND = "inductor"
"""Compiler of the graphs of forward and backward passes."""


def compile_blocks(model: nn.Module, plan: ParallelPlan) -> None:
    """Compile each block in place; the names of parameters do not change.

    A block is one graph: where torch cannot trace a part of it, the first step fails, and nothing is left uncompiled in
    silence. To be called after tensor parallelism and activation checkpointing, which become parts of the graph, and
    before fully_shard, whose hooks stay outside of it.

    Raises:
        ConfigError: there is no C++ compiler, which the generated code needs (on a GPU, too, to start its kernels).
    """
    if BACKEND == "inductor" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError(
            "spec.trainer.compile: there is no C++ compiler (g++) in the worker; remove it, or use an image that has "
            "one, as the trainer image has"
        )
    # torch would name the folder after the user, and in a container the user has no name.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    blocks = set(plan.layers())
    for block in blocks:
        block.compile(fullgraph=True, backend=BACKEND)
    for module in model.children():
        if blocks.isdisjoint(module.modules()):
            module.register_forward_hook(_wait)


def overlap_collectives(device: torch.device) -> None:
    """Have the compiler divide products next to collectives of a tensor group, so that both happen at the same time.

    The parts travel through symmetric memory, which the GPUs of a node read from each other.

    Raises:
        ConfigError: this rank has no GPU.
    """
    if device.type != "cuda":
        raise ConfigError(
            "spec.parallelism.asyncTensor: needs GPUs, but the worker sees none; remove it, or set "
            "spec.workers.resources.limits[nvidia.com/gpu]"
        )
    overlap_tensor_collectives()


def _wait(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
    """Return a plain tensor for one whose collective is still running.

    The embedding of a tensor group returns such a tensor, an instance of a subclass. torch 2.15 compiles the backward
    pass of a block for the class of its inputs, and hands on a gradient of the wrong class, or of wrong values where
    fully_shard has casted it. The first operation of the block would wait as well; the copy is one per micro-batch.
    """
    return output.clone() if isinstance(output, AsyncCollectiveTensor) else None
