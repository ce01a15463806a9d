"""All uses of names that torch does not document, so that an update of torch has one module to check.

They hold for torch `TORCH_VERSION`; a test compares it with the installed version. After an update of torch, check
each name here against its sources, run the tests of the trainer, and raise the version.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    HashStore,
    PrefixStore,
    ProcessGroupGloo,
    TCPStore,
    _DistributedBackendOptions,
)
from torch.distributed import Backend, ProcessGroup
from torch.distributed._functional_collectives import (
    AsyncCollectiveTensor,
    all_reduce,
    all_to_all_single,
    all_to_all_single_autograd,
)
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend

__all__ = [
    "TORCH_VERSION",
    "AsyncCollectiveTensor",
    "HashStore",
    "PrefixStore",
    "TCPStore",
    "all_reduce",
    "all_to_all_single",
    "all_to_all_single_autograd",
    "concatenate_meshes",
    "die_with_parent",
    "dump_memory_snapshot",
    "flatten_mesh",
    "foreach_mul_",
    "foreach_norm",
    "local_offsets",
    "overlap_tensor_collectives",
    "pci_address",
    "set_attention_order",
    "shared_memory_stager",
    "use_one_gloo_thread",
]

TORCH_VERSION = "2.15.0"
"""The version of torch that this module has been checked against."""


def concatenate_meshes(meshes: Sequence[DeviceMesh]) -> DeviceMesh:
    """Return a mesh with the dimensions of several meshes over the same ranks, in order."""
    return DeviceMesh._concatenate(list(meshes))


def flatten_mesh(mesh: DeviceMesh, name: str) -> DeviceMesh:
    """Return a one-dimensional mesh of this name with all ranks of a mesh."""
    return mesh._flatten(name)


def foreach_mul_(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiply tensors by a scalar tensor, in place, with few kernels (as torch.nn.utils.clip_grads_with_norm_)."""
    torch._foreach_mul_(tensors, factor)


def foreach_norm(tensors: list[Tensor]) -> list[Tensor]:
    """Return the 2-norm of each tensor, with few kernels (as torch.nn.utils.get_total_norm)."""
    return list(torch._foreach_norm(tensors))


def local_offsets(tensor: DTensor) -> tuple[int, ...]:
    """Return where this rank's part of a tensor begins in each dimension, as for a distributed checkpoint."""
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    return tuple(chunk.offsets)


def overlap_tensor_collectives() -> None:
    """Have inductor fuse matrix products with the all-gathers before and the reduce-scatters behind them (async TP)."""
    import torch._inductor.config

    torch._inductor.config._micro_pipeline_tp = True


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent ends (Linux: PR_SET_PDEATHSIG)."""
    from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

    _prctl_pr_set_pdeathsig(signal_number)


def dump_memory_snapshot(path: Path) -> None:
    """Write the blocks of the CUDA allocator to a file."""
    torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]


def set_attention_order(backends: Sequence[SDPBackend]) -> None:
    """Set the order in which scaled_dot_product_attention looks for a kernel (as torch.nn.attention.sdpa_kernel)."""
    torch._C._set_sdp_priority_order([int(cast(Any, backend)) for backend in backends])


def pci_address(device: torch.device) -> str:
    """Return the PCI address of a GPU, for example 0000:3b:00.0."""
    properties: Any = torch.cuda.get_device_properties(device)
    return f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"


class OrderedStager(DefaultStager):
    """A stager whose copies begin when the work that the calling thread has given to the device is done.

    DefaultStager copies on a stream of its own, which waits for nothing. On a GPU the optimizer's update is only queued
    when it returns, so a copy that begins at once holds some tensors from before the update and some from after it.
    The other direction needs no stream: a stager ends when its stream has, and the update after it waits for that
    (`Saver.before_update`).
    """

    def stage(self, state_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Copy tensors in a thread; returns a future (see DefaultStager.stage)."""
        # Called by the thread that trains, so its current stream is the one with the update.
        if self._staging_stream is not None:
            self._staging_stream.wait_stream(torch.accelerator.current_stream())
        return super().stage(state_dict, **kwargs)


def shared_memory_stager(*, cuda: bool) -> DefaultStager:
    """Return a stager that copies tensors in a thread of its own, into memory shared with the background process."""
    options = StagingOptions(cuda, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=cuda)
    return OrderedStager(options)


def use_one_gloo_thread() -> None:
    """Give every gloo group that is formed from now on one thread.

    torch gives each group two. They write the name of the collective that they have begun or ended into the same
    strings without a lock (`ProcessGroupGloo::runLoop`), and when two collectives of a group overlap, one run in some
    hundreds writes into memory that has been freed: "malloc(): unaligned tcache chunk detected". With one thread,
    collectives of a group run in the order of their calls; those of different groups still run side by side.
    """
    Backend.register_backend(
        Backend.GLOO,
        _create_gloo_group,
        extended_api=True,
        devices=Backend.backend_capability[Backend.GLOO],
        _backend_type=ProcessGroup.BackendType.GLOO,
    )


def _create_gloo_group(backend_options: _DistributedBackendOptions, _options: object | None) -> ProcessGroupGloo:
    """Create a group as torch does, except for the number of threads."""
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._threads = 1
    options._timeout = backend_options.timeout
    options._devices = [ProcessGroupGloo.create_device(interface=name) for name in _gloo_interfaces()]
    options._devices = options._devices or [ProcessGroupGloo.create_default_device()]
    options.global_ranks_in_group = backend_options.global_ranks_in_group
    options.group_name = backend_options.group_id
    return ProcessGroupGloo(backend_options.store, backend_options.group_rank, backend_options.group_size, options)


def _gloo_interfaces() -> list[str]:
    return [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
