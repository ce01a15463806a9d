"""How the trainer distributes the parameters of a model, and in which type it computes (`parallel.parallelize`)."""

from dataclasses import dataclass

from trainyard.config import RunConfig
from trainyard.models.family import FULL_BYTES, HALF_BYTES, RankParameters


@dataclass(frozen=True, slots=True)
class Placement:
    """Distribution of the parameters, the same on all ranks of a job."""

    served: bool
    """Whether gradients are sent to a parameter server."""
    replicated: bool
    """Whether they are wrapped in DistributedDataParallel."""
    sharded: bool
    """Whether they are sharded by fully_shard."""
    shards: int
    """Number of ranks over which all parameters but those of experts are sharded."""
    apart: bool
    """Whether experts are divided among ranks, and so are gathered apart from their block."""
    experts_sharded: bool
    """Whether the parameters of experts are sharded by fully_shard."""
    expert_shards: int
    """Number of ranks over which the parameters of one rank's experts are sharded."""
    casts: bool
    """Whether autocast computes matrix products in bfloat16, as with a parameter server; else fully_shard gathers
    parameters in bfloat16."""
    width: int
    """Bytes of one activation inside the blocks."""

    @property
    def stream_width(self) -> int:
        """Bytes of one activation in the residual stream."""
        return FULL_BYTES if self.casts else self.width

    def held(self, own: RankParameters) -> int:
        """Return the scalars that a rank holds of the parameters that it computes with."""
        return own.dense // self.shards + own.stacked // self.expert_shards


def placement(config: RunConfig) -> Placement:
    """Return how the parameters of a job are distributed."""
    mesh, half = config.mesh, config.trainer.precision == "bfloat16"
    served = config.servers > 0
    # DistributedDataParallel averages gradients, and so would scale an auxiliary loss inside a layer wrongly; and it
    # casts nothing.
    plain = not half and (
        mesh.size == 1
        or (mesh.pipeline * mesh.shard * mesh.expert * mesh.tensor == 1 and not config.family.auxiliary_loss)
    )
    sharded = not served and not plain and (half or mesh.data * mesh.context > 1)
    apart = sharded and mesh.expert > 1
    own = mesh.shard * mesh.context
    has_experts = "expert" in config.family.supports
    experts_sharded = sharded and has_experts and (not apart or half or mesh.replicate * own > 1)
    return Placement(
        served=served,
        replicated=plain and mesh.size > 1 and not served,
        sharded=sharded,
        shards=own * mesh.expert if sharded else 1,
        apart=apart,
        experts_sharded=experts_sharded,
        expert_shards=own if experts_sharded else 1,
        casts=half and served,
        width=HALF_BYTES if half else FULL_BYTES,
    )
