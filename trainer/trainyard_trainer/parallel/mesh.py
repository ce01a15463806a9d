"""The mesh of ranks, as torch.distributed sees it."""

from functools import cached_property

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from trainyard.mesh import AXES, Mesh
from trainyard_trainer.runtime.torch_internals import concatenate_meshes, flatten_mesh
from trainyard_trainer.runtime.world import World


class RankMesh:
    """Where this rank stands on each axis, and its process groups. Axes of size 1 have groups of one rank."""

    def __init__(self, sizes: Mesh, world: World) -> None:
        """All ranks must call it at the same time; groups form here.

        With one rank there is none, and neither with a parameter server, through which all exchange goes.
        """
        self.sizes = sizes
        self.at = sizes.coordinate(world.rank)
        self._mesh: DeviceMesh | None = None
        if world.size > 1 and not world.servers:
            self._mesh = init_device_mesh(world.device.type, sizes.shape, mesh_dim_names=AXES)

    def __getitem__(self, axis: str) -> DeviceMesh:
        """The ranks that differ from this one on an axis only."""
        assert self._mesh is not None
        return self._mesh[axis]

    @property
    def forms_groups(self) -> bool:
        """Whether ranks talk to each other during a step."""
        return self._mesh is not None

    def group(self, axis: str) -> dist.ProcessGroup:
        """The same ranks as a process group."""
        return self[axis].get_group()

    @property
    def is_plain(self) -> bool:
        """Whether all ranks hold the whole model (no axis but replicate and context)."""
        return self.sizes.pipeline * self.sizes.shard * self.sizes.expert * self.sizes.tensor == 1

    @cached_property
    def parameters(self) -> DeviceMesh:
        """[replicate, shard x context x expert]: what parameters are replicated and sharded over.

        Ranks of a context hold parts of the same sequences, so their gradients are summed as those of data-parallel
        ranks are, and they may as well share the memory of the parameters. Ranks with different experts are
        data-parallel to all parameters but those of the experts.
        """
        return self._replicated_and_sharded("parameters", "shard", "context", "expert")

    @cached_property
    def experts(self) -> DeviceMesh:
        """[replicate, shard x context]: what the parameters of a rank's own experts are replicated and sharded over."""
        return self._replicated_and_sharded("experts", "shard", "context")

    def _replicated_and_sharded(self, name: str, *axes: str) -> DeviceMesh:
        assert self._mesh is not None
        return concatenate_meshes([self._mesh["replicate"], flatten_mesh(self._mesh[axes], name)])

    @property
    def counts_loss(self) -> bool:
        """Whether this rank's loss is a part of the sum over all: one rank of each tensor group, in the last stage.

        With ZBV the last stage lies on the first rank of the pipeline; a rank without it has a loss of zero.
        """
        return self.at.tensor == 0
