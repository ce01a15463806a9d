"""The complete configuration of a run: what each rank of the built-in trainer reads when it starts."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field

from trainyard.base import ApiModel
from trainyard.mesh import Mesh
from trainyard.models import FAMILIES
from trainyard.models.family import ModelConfig, ModelFamily
from trainyard.resource.checkpoint import CheckpointConfig
from trainyard.resource.datasets import vocabulary
from trainyard.resource.health import HealthConfig
from trainyard.resource.parallelism import Parallelism
from trainyard.resource.training import TrainerSpec

Precision = Literal["float32", "bfloat16"]

if TYPE_CHECKING:
    AnyModelConfig = ModelConfig
else:
    AnyModelConfig = Annotated[
        Union[tuple(family.config for family in FAMILIES.values())],  # noqa: UP007
        Field(discriminator="name"),
    ]


class MemoryUse(ApiModel):
    """What the ranks do with memory that is not needed, chosen by `trainyard.sizing.memory_use`."""

    gradients: Literal["sharded", "complete"] = "sharded"
    """What fully_shard keeps of the gradients between two micro-batches. sharded: each rank its shard, for which they
    are reduced after each micro-batch, while the backward pass runs. complete: each rank all gradients of its layers,
    which are reduced once per step. A pipeline always keeps them complete."""
    keep_freed: bool = True
    """Whether ranks on CPUs keep memory that they have freed for the next step, which is faster, or return it."""


class RunConfig(ApiModel):
    """Configuration of a job, complete: the file config.json of its ConfigMap."""

    job: str
    """Name of the job."""
    namespace: str
    """Namespace of the job."""
    world_size: int
    """Number of ranks that train."""
    servers: int = 0
    """Number of parameter servers, ranked after the ranks that train."""
    mesh: Mesh
    """Sizes of the axes of the device mesh."""
    parallelism: Parallelism
    """spec.parallelism."""
    model: AnyModelConfig
    """Sizes of the model."""
    micro_batch: int
    """Samples per forward pass of one rank; an upper limit if each step is over all samples."""
    checkpoint: CheckpointConfig | None = None
    """When checkpoints are written; None: never."""
    health: HealthConfig = HealthConfig()
    """When a run counts as hanging or diverging."""
    trainer: TrainerSpec
    """spec.trainer, with its precision resolved: never auto."""
    memory_use: MemoryUse = MemoryUse()
    """What the ranks do with memory that is not needed."""

    @property
    def precision(self) -> Precision:
        """Data type of matrix products and activations."""
        assert self.trainer.precision != "auto", "resolved by trainyard.resolve"
        return self.trainer.precision

    @property
    def only_evaluates(self) -> bool:
        """Whether no gradient is ever computed: the job neither trains nor explains."""
        return self.trainer.task == "evaluate" and self.trainer.explain is None

    @property
    def accumulation(self) -> int:
        """Micro-batches of one rank per optimizer step; a lower limit if each step is over all samples."""
        batch = self.trainer.batch.global_
        return self.mesh.pipeline if batch is None else batch // (self.mesh.data * self.micro_batch)

    @property
    def family(self) -> ModelFamily[Any]:
        """Family of the model."""
        return FAMILIES[self.model.name]

    @property
    def vocabulary(self) -> int:
        """Number of entries of the model's vocabulary."""
        return vocabulary(self.trainer.data)

    @property
    def tokens_per_sample(self) -> int:
        """Number of predictions for one sample: one for each token of a text, one for a row of a table."""
        return self.family.tokens_per_sample(self.model)
