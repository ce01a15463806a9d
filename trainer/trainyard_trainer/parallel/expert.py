"""Expert parallelism: each rank holds some of the experts, and tokens are sent to them (Lepikhin et al., 2020)."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from trainyard_trainer.models.experts import inverse
from trainyard_trainer.models.family import ExpertStack, ParallelPlan
from trainyard_trainer.runtime.torch_internals import all_to_all_single, all_to_all_single_autograd


def apply_expert_parallel(plan: ParallelPlan, mesh: DeviceMesh) -> None:
    """Divide the experts among the ranks, and send the rows of all ranks to the ranks that hold their experts."""
    for experts in plan.experts():
        for name, matrices in list(experts.named_parameters()):
            part = distribute_tensor(matrices, mesh, [Shard(0)], src_data_rank=None)
            experts.register_parameter(name, nn.Parameter(part))
        stack = cast(ExpertStack, experts)
        stack.core = AllToAll(stack.core, mesh.get_group())


class AllToAll(nn.Module):
    """Experts on many ranks, given the rows of one: R ranks, L = X / R experts on each, M rows that arrive here.

    The number of rows for each rank differs from step to step, so that the ranks exchange their counts first. The host
    needs them, and waits for the device, once per layer and pass; in return nothing is padded or dropped.
    """

    def __init__(self, core: nn.Module, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.core = core
        self.group = group

    def forward(
        self, x_SD: Tensor, row_N: Tensor, count_X: Tensor, gate: DTensor, up: DTensor, down: DTensor
    ) -> Tensor:
        leaving_RL = count_X.view(self.group.size(), -1)
        arriving_RL = all_to_all_single(leaving_RL, None, None, self.group)
        counts = HostCopy(torch.stack((leaving_RL.sum(1), arriving_RL.sum(1))))
        row_ND = x_SD.index_select(0, row_N)  # what the device does while the counts travel
        leaving, arriving = counts.wait()
        row_MD = self._exchange(row_ND, leaving, arriving)

        # Rows are grouped by source rank, and in each group by expert: group all rows of an expert.
        expert_L = torch.arange(arriving_RL.shape[1], device=row_ND.device)
        expert_M = expert_L.repeat(self.group.size()).repeat_interleave(
            arriving_RL.flatten(), output_size=sum(arriving)
        )
        order_M = expert_M.argsort(stable=True)
        matrices = (stack.to_local() for stack in (gate, up, down))
        y_MD = self.core(row_MD, order_M, arriving_RL.sum(0), *matrices)
        return self._exchange(y_MD.index_select(0, inverse(order_M)), arriving, leaving)

    def _exchange(self, x: Tensor, leaving: list[int], arriving: list[int]) -> Tensor:
        """Exchange rows [sum of leaving, D], grouped by target rank, for rows [sum of arriving, D], by source rank."""
        received: Tensor = all_to_all_single_autograd(x, arriving, leaving, self.group)
        return received


class HostCopy:
    """A copy of a small tensor to the host, which does not wait for what the device is asked to do after it."""

    def __init__(self, tensor: Tensor) -> None:
        """Start the copy."""
        self._host = tensor
        self._done: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def wait(self) -> Any:
        """Return the values as nested lists."""
        if self._done is not None:
            self._done.synchronize()
        return self._host.tolist()
