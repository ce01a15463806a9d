"""Tensor parallelism (Shoeybi et al., 2019): each rank holds parts of the matrices."""

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import parallelize_module

from trainyard_trainer.models.family import ParallelPlan


def apply_tensor_parallel(plan: ParallelPlan, mesh: DeviceMesh) -> None:
    """Replace the parameters by this rank's parts of them, and add the communication before and after each matrix."""
    for module, styles in plan.tensor_plan():
        parallelize_module(module, mesh, styles)
