"""The complete configuration of a run: what each rank of the built-in trainer reads when it starts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field

from trainyard.base import ApiModel
from trainyard.mesh import Mesh
from trainyard.models import FAMILIES
from trainyard.models.family import DEFAULT_PRESET, ModelConfig, ModelFamily
from trainyard.resource.checkpoint import CheckpointConfig
from trainyard.resource.datasets import vocabulary
from trainyard.resource.health import HealthConfig
from trainyard.resource.parallelism import Parallelism
from trainyard.resource.training import TrainerSpec

_WITH_DEFAULTS = {"ropeTheta", "normEps", "tiedEmbeddings", "qkNorm"}
"""Sizes of a decoder that neither the layout nor the memory depend on by much."""
_CHANGEABLE = {"ropeTheta", "ropeScaling", "balanceLossWeight"}
"""Fields of spec.trainer.model that may differ from the weights with which a run begins."""

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
    def accumulation(self) -> int:
        """Micro-batches of one rank per optimizer step; a lower limit if each step is over all samples."""
        batch = self.trainer.batch.global_
        return self.mesh.pipeline if batch is None else batch // (self.mesh.data * self.micro_batch)

    @property
    def family(self) -> ModelFamily[Any]:
        """Family of the model."""
        return FAMILIES[self.model.name]

    @property
    def sizes_known(self) -> bool:
        """Whether `model` has the sizes of the model: not if only the folder of spec.trainer.model.from has them."""
        model = self.trainer.model
        if model.from_ is None or model.preset is not None:
            return True
        required = self.family.presets.get(DEFAULT_PRESET, {}).keys() - _WITH_DEFAULTS
        return bool(required) and required <= self.family.own_fields(model.to_dict()).keys()

    def with_sizes_of(self, sizes: Mapping[str, Any]) -> "RunConfig":
        """Return the configuration with what spec.trainer.model leaves out taken from the weights of `from`.

        Args:
            sizes: resolved sizes of the model that has these weights, by their names in JSON.
        """
        if self.trainer.model.from_ is None:
            return self
        data = {name: value for name, value in self.model.to_dict().items() if not self.family.own_fields({name: 0})}
        fields = {**sizes, **{name: value for name, (value, _) in self._given_sizes().items()}, **data}
        if fields.get("ropeScaling", {}).get("type") == "none":
            del fields["ropeScaling"]
        return self.replace(model=self.family.config.model_validate(fields, extra="ignore"))

    def contradictions(self, sizes: Mapping[str, Any], place: str) -> list[str]:
        """Return what spec.trainer.model says otherwise than the weights of `from`: field, both values and the fix.

        Args:
            sizes: resolved sizes of the model that has these weights, by their names in JSON.
            place: what holds the weights.
        """
        if sizes.get("name") != self.model.name:
            return [
                f"spec.trainer.model.name: is {self.model.name}, but {place} holds a {sizes.get('name')}; set it to "
                "that"
            ]
        found = []
        for name, (value, preset) in self._given_sizes().items():
            # Frequencies may be changed on purpose, for longer sequences; the weight of a loss is no size.
            if name in sizes and sizes[name] != value and (preset or name not in _CHANGEABLE):
                field, what = (f"preset: {preset} has {name}", "preset") if preset else (f"{name}: is", "it")
                found.append(
                    f"spec.trainer.model.{field} {value}, but {place} has {sizes[name]}; remove {what}, or choose "
                    "other weights"
                )
        vocabulary = sizes.get("vocabSize", self.vocabulary)
        if vocabulary != self.vocabulary:
            found.append(
                f"spec.trainer.data.vocabSize: is {self.vocabulary}, but {place} has {vocabulary}; set it to that, "
                "with the tokenizer of the weights (tokenizer: file and tokenizerFile)"
            )
        return found

    def _given_sizes(self) -> dict[str, tuple[Any, str | None]]:
        """Return the sizes that spec.trainer.model gives, each with the preset that it comes from, if it does."""
        model = self.trainer.model
        preset = {} if model.preset is None else self.family.presets[model.preset]
        own = self.family.own_fields(model.to_dict())
        return {name: (value, model.preset) for name, value in preset.items() if name not in own} | {
            name: (value, None) for name, value in own.items()
        }

    @property
    def vocabulary(self) -> int:
        """Number of entries of the model's vocabulary."""
        return vocabulary(self.trainer.data)

    @property
    def tokens_per_sample(self) -> int:
        """Number of predictions for one sample: one for each token of a text, one for a row of a table."""
        return self.family.tokens_per_sample(self.model)
