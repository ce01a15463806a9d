"""The complete configuration of a run: what a worker of the built-in trainer reads at its start."""

from typing import Annotated, Literal

from pydantic import Field

from trainyard.base import ApiModel
from trainyard.mesh import Mesh
from trainyard.resource.checkpoint import CheckpointConfig
from trainyard.resource.health import HealthConfig
from trainyard.resource.parallelism import Parallelism
from trainyard.resource.training import TrainerSpec


class MixtureConfig(ApiModel):
    """The experts that a moe has for each feed-forward network."""

    experts: int
    experts_per_token: int
    balance_loss_weight: float


class TransformerConfig(ApiModel):
    """Sizes of a transformer, complete; with a mixture of experts it is a moe."""

    name: Literal["llama", "moe"] = "llama"
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    vocab_size: int
    sequence_length: int
    mixture: MixtureConfig | None = None


class MlpConfig(ApiModel):
    """Sizes of a multi-layer perceptron; features and classes are those of the data."""

    name: Literal["mlp"] = "mlp"
    hidden_sizes: tuple[int, ...]


class RunConfig(ApiModel):
    """What every worker of a job reads at start-up (the ConfigMap's config.json)."""

    job: str
    namespace: str
    world_size: int
    """Ranks that train."""
    servers: int = 0
    """Parameter servers, ranked after those that train."""
    mesh: Mesh
    """Sizes of the axes over which the ranks are laid out."""
    parallelism: Parallelism
    """How model and data are split, as the user wrote it."""
    model: Annotated[TransformerConfig | MlpConfig, Field(discriminator="name")]
    micro_batch: int
    """Samples per forward pass of one rank; with gd at most."""
    checkpoint: CheckpointConfig | None = None
    """How often the state is written; None: never."""
    health: HealthConfig = HealthConfig()
    """When the run is taken to hang."""
    trainer: TrainerSpec
    """The rest, as the user wrote it."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of one rank per optimizer step; with gd, whose batch is all data, at least so many."""
        batch = self.trainer.batch.global_
        return self.mesh.pipeline if batch is None else batch // (self.mesh.data * self.micro_batch)

    @property
    def transformer(self) -> TransformerConfig:
        """The model, known to be a transformer or a moe."""
        assert isinstance(self.model, TransformerConfig)
        return self.model

    @property
    def tokens_per_sample(self) -> int:
        """Predictions that one sample asks for: one for each token, or one for a class."""
        return self.model.sequence_length if isinstance(self.model, TransformerConfig) else 1
