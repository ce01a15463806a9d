"""Expert parallelism: each rank holds some of the experts, and tokens travel to them (Lepikhin et al., 2020)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from trainyard_trainer.models.transformer import Transformer
from trainyard_trainer.runtime.torch_internals import all_to_all_single, all_to_all_single_autograd


def split_experts(model: Transformer, mesh: DeviceMesh) -> None:
    """Leave each rank its part of the experts, and let the rows of all ranks travel to where their experts are."""
    for mixture in model.mixtures():
        experts = mixture.experts
        for name, stack in list(experts.named_parameters()):
            part = distribute_tensor(stack, mesh, [Shard(0)], src_data_rank=None)
            experts.register_parameter(name, nn.Parameter(part))
        experts.core = AllToAll(experts.core, mesh.get_group())


class AllToAll(nn.Module):
    """Experts on many ranks, given the rows of one. R ranks, L = X / R experts each, M rows that arrive.

    How many rows go where is different in each step, so the ranks tell each other first. The device waits for that;
    in return nothing is padded or dropped.
    """

    def __init__(self, core: nn.Module, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.core = core
        self.group = group

    def forward(self, row_ND: Tensor, count_X: Tensor, gate: DTensor, up: DTensor, down: DTensor) -> Tensor:
        leaving_RL = count_X.view(self.group.size(), -1)
        arriving_RL = all_to_all_single(leaving_RL, None, None, self.group)
        leaving, arriving = torch.stack((leaving_RL.sum(1), arriving_RL.sum(1))).tolist()
        row_MD = self._exchange(row_ND, leaving, arriving)

        # From each rank they come in order of experts: put together what is for the same expert.
        expert_L = torch.arange(arriving_RL.shape[1], device=row_ND.device)
        expert_M = expert_L.repeat(self.group.size()).repeat_interleave(arriving_RL.flatten())
        order_M = expert_M.argsort(stable=True)
        matrices = (stack.to_local() for stack in (gate, up, down))
        y_MD = self.core(row_MD.index_select(0, order_M), arriving_RL.sum(0), *matrices)
        return self._exchange(y_MD.index_select(0, order_M.argsort()), arriving, leaving)

    def _exchange(self, x: Tensor, leaving: list[int], arriving: list[int]) -> Tensor:
        """Rows [sum of leaving, D] in order of the ranks they go to; [sum of arriving, D] in order of whence."""
        received: Tensor = all_to_all_single_autograd(x, arriving, leaving, self.group)
        return received
