"""Gloo with one thread for each process group.

torch gives each group two. They note the name of what they have begun and ended in strings that both write without a
lock (`ProcessGroupGloo::runLoop`, torch 2.15), and when two collectives of a group overlap, one run in some hundreds
writes into memory that has been freed: "malloc(): unaligned tcache chunk detected". With one thread, collectives of a
group run in the order in which they were asked for, those of different groups side by side as before.
"""

import os

from torch._C._distributed_c10d import ProcessGroupGloo, _DistributedBackendOptions
from torch.distributed import Backend, ProcessGroup


def use_one_thread() -> None:
    """Let every gloo group that is formed from now on have one thread."""
    Backend.register_backend(
        Backend.GLOO,
        _create,
        extended_api=True,
        devices=Backend.backend_capability[Backend.GLOO],
        _backend_type=ProcessGroup.BackendType.GLOO,
    )


def _create(about: _DistributedBackendOptions, _options: object | None) -> ProcessGroupGloo:
    """As torch does it, but for the number of threads."""
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._threads = 1
    options._timeout = about.timeout
    options._devices = [ProcessGroupGloo.create_device(interface=name) for name in _interfaces()]
    options._devices = options._devices or [ProcessGroupGloo.create_default_device()]
    options.global_ranks_in_group = about.global_ranks_in_group
    options.group_name = about.group_id
    return ProcessGroupGloo(about.store, about.group_rank, about.group_size, options)


def _interfaces() -> list[str]:
    return [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
