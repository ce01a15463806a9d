"""How the trainer lays the parameters of a model over the ranks, and in which type it computes (`parallel.parts`)."""

from dataclasses import dataclass

from trainyard.config import RunConfig
from trainyard.sizing.model_size import RankParameters

FULL_BYTES, HALF_BYTES = 4, 2
"""Bytes of a float32, in which everything is held, and of a bfloat16."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What holds for all parameters of a rank."""

    served: bool
    """Gradients go to a parameter server."""
    replicated: bool
    """They are under DistributedDataParallel."""
    sharded: bool
    """They are under fully_shard."""
    shards: int
    """Ranks that they are sharded over, but for those of experts."""
    apart: bool
    """Experts are spread over ranks, and so not gathered together with their block."""
    experts_sharded: bool
    """Those of experts are under fully_shard."""
    expert_shards: int
    """Ranks that those of a rank's experts are sharded over."""
    casts: bool
    """Matrix products are in bfloat16 by autocast; else fully_shard gathers parameters in the type of products."""
    width: int
    """Bytes of an activation inside the blocks."""

    @property
    def stream_width(self) -> int:
        """Bytes of an activation in the residual stream."""
        return FULL_BYTES if self.casts else self.width

    def held(self, own: "RankParameters") -> int:
        """Scalars that a rank keeps of the parameters that it computes with."""
        return own.dense // self.shards + own.stacked // self.expert_shards


def placement(config: RunConfig) -> Placement:
    """That of all ranks of a job."""
    mesh, half = config.mesh, config.trainer.precision == "bfloat16"
    # A loss of the experts' load is no part of the sum that DistributedDataParallel makes means of.
    plain = mesh.size == 1 or (
        mesh.pipeline * mesh.shard * mesh.expert * mesh.tensor == 1 and config.model.name != "moe"
    )
    sharded = not plain and (half or mesh.data * mesh.context > 1)
    apart = sharded and mesh.expert > 1
    own = mesh.shard * mesh.context
    experts_sharded = sharded and config.model.name == "moe" and (not apart or half or mesh.replicate * own > 1)
    return Placement(
        served=config.servers > 0,
        replicated=plain and mesh.size > 1 and not config.servers,
        sharded=sharded,
        shards=own * mesh.expert if sharded else 1,
        apart=apart,
        experts_sharded=experts_sharded,
        expert_shards=own if experts_sharded else 1,
        casts=half and not sharded,
        width=HALF_BYTES if half else FULL_BYTES,
    )
