"""The device mesh of torch.distributed, and the place of this rank on it."""

from functools import cached_property

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from trainyard.mesh import AXES, Mesh
from trainyard_trainer.runtime.torch_internals import concatenate_meshes, flatten_mesh
from trainyard_trainer.runtime.world import World


class RankMesh:
    """Coordinates of this rank on each axis, and its process groups. Axes of size 1 have groups of one rank."""

    def __init__(self, sizes: Mesh, world: World) -> None:
        """Form the process groups; all ranks must call this at the same time.

        There are no groups with one rank, nor with a parameter server, through which all communication goes.
        """
        self.sizes = sizes
        self.at = sizes.coordinate(world.rank)
        self._device_type = world.device.type
        self._mesh: DeviceMesh | None = None
        self._timeout = world.timeout
        if world.size > 1 and not world.servers:
            self._mesh = init_device_mesh(world.device.type, sizes.shape, mesh_dim_names=AXES)
            # torch gives the groups of a mesh its own default, whatever the timeout of the group of all ranks.
            for group in self._mesh.get_all_groups():
                dist.set_timeout(self._timeout, group)

    def __getitem__(self, axis: str) -> DeviceMesh:
        """Return the ranks that differ from this one on one axis only."""
        assert self._mesh is not None
        return self._mesh[axis]

    def group(self, axis: str) -> dist.ProcessGroup:
        """Return the ranks that differ from this one on one axis only, as a process group."""
        return self[axis].get_group()

    @property
    def is_plain(self) -> bool:
        """Whether each rank holds all parameters: no axis besides replicate and context has more than one rank."""
        return self.sizes.pipeline * self.sizes.shard * self.sizes.expert * self.sizes.tensor == 1

    @cached_property
    def parameters(self) -> DeviceMesh:
        """Mesh [replicate, shard x context x expert] over which parameters are replicated and sharded.

        Ranks of a context group hold parts of the same sequences, so that their gradients are summed like those of
        data-parallel ranks, and parameters can be sharded over them. Ranks with different experts are data-parallel
        for all parameters but those of the experts.

        Without replicas it is [shard x context x expert], so that gradients are not reduced over groups of one rank.
        """
        return self._replicated_and_sharded("parameters", "shard", "context", "expert")

    @cached_property
    def experts(self) -> DeviceMesh:
        """Mesh [replicate, shard x context], or [shard x context] without replicas, for the experts of one rank."""
        return self._replicated_and_sharded("experts", "shard", "context")

    @property
    def replicas(self) -> dist.ProcessGroup | None:
        """The ranks that hold the same plain tensors; None if there are no others, or all tensors are sharded."""
        if self._mesh is None or not self.is_plain:
            return None
        return dist.group.WORLD

    def _replicated_and_sharded(self, name: str, *axes: str) -> DeviceMesh:
        if self._mesh is None:
            return init_device_mesh(self._device_type, (1,), mesh_dim_names=(name,))
        sharded = flatten_mesh(self._mesh[axes], name)
        dist.set_timeout(self._timeout, sharded.get_group())
        return sharded if self.sizes.replicate == 1 else concatenate_meshes([self._mesh["replicate"], sharded])

    @property
    def counts_loss(self) -> bool:
        """Whether this rank's loss is added to the sum over all ranks: only one rank of each tensor group counts.

        Ranks without the last pipeline stage count, too; their loss is zero.
        """
        return self.at.tensor == 0
