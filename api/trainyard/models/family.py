"""Description of a model family: its fields in the resource, its sizes, and the features that it supports."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from trainyard.base import ApiModel, Rule

Feature = Literal[
    "tensor",
    "context",
    "pipeline",
    "expert",
    "parameterServer",
    "activationCheckpointing",
    "compile",
    "fullBatch",
    "isolatedDocuments",
    "explain",
    "privacy",
    "lora",
]
"""Features that the trainer has for some families only: an axis of spec.parallelism, a data-parallel mode, an option of
spec.trainer, an optimizer whose steps are over all samples (fullBatch), attention that does not cross documents
(isolatedDocuments), explanations of predictions, gradients of single samples (privacy), or adapters (lora)."""

FULL_BYTES, HALF_BYTES = 4, 2
"""Bytes of a float32, in which all state is held, and of a bfloat16."""
CUSTOM = "custom"
"""Name of the model and of the data source that spec.trainer.module brings."""
DEFAULT_PRESET = "tiny"
"""Every family with presets has one of this name, which is used if spec.trainer.model.preset is absent."""


class ModelConfig(ApiModel):
    """All sizes of a model, resolved; each family adds its own."""

    name: str
    """Name of the family."""


class DataShape(NamedTuple):
    """Sizes of the data that determine sizes of a model."""

    vocabulary: int
    """Entries of the tokenizer."""
    sequence_length: int
    """Tokens of one sample."""
    features: int | None
    """Columns of a table; None if only the worker knows them."""
    classes: int | None
    """Classes of a table; None if only the worker knows them."""


class LayoutRule(NamedTuple):
    """A rule between the sizes of a model and the layout of the ranks, in the Common Expression Language.

    In `cel`, {tensor}, {context} and {expert} stand for sizes of axes, {totalStages} for the stages of the pipeline,
    {vocabulary} and {sequenceLength} for sizes of the data, and {FIELD} for a size of the model that each preset has:
    the user's, else the preset's. Families that share a rule share the object, and the CRD has it once.
    """

    cel: str
    message: str


class ModelPart(NamedTuple):
    """The part of a model that one rank computes with."""

    stages: tuple[int, ...] = (0,)
    """Blocks in each of its pipeline stages."""
    first: bool = True
    """Whether it has the first stage of the model."""
    last: bool = True
    """Whether it has the last stage of the model."""
    tensor: int = 1
    """Ranks that divide its matrices."""
    expert: int = 1
    """Ranks that divide its experts."""


@dataclass(frozen=True, slots=True)
class RankParameters:
    """Number of scalars in the parameters that a rank computes with, once they are gathered."""

    layers: int = 0
    """Blocks on this rank; 0 for a model without blocks."""
    chunk_layers: int = 0
    """Blocks in its largest pipeline stage; some schedules give a rank two stages."""
    block: int = 0
    """Scalars of one block, without its experts."""
    experts: int = 0
    """Scalars in the experts of one block, of which this rank has its share; 0 without experts."""
    embedding: int = 0
    """Scalars of the embedding; 0 if another rank has it."""
    head: int = 0
    """Scalars of the last norm and the head; 0 if another rank has them. All scalars of a model without blocks."""
    matrices: int = 0
    """Scalars of all matrices inside the blocks; experts, which are stacks of matrices, do not count."""
    largest: int = 0
    """Scalars of the largest parameter of a block."""
    largest_matrix: int = 0
    """Scalars of the largest matrix inside a block of the undivided model; experts do not count."""

    @property
    def outer(self) -> int:
        """Scalars outside of the blocks."""
        return self.embedding + self.head

    @property
    def dense(self) -> int:
        """Scalars of all parameters but experts."""
        return self.layers * self.block + self.outer

    @property
    def stacked(self) -> int:
        """Scalars of the experts of all blocks."""
        return self.layers * self.experts

    @property
    def total(self) -> int:
        """Scalars of all parameters."""
        return self.dense + self.stacked


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass on one rank: everything besides the model that activations depend on."""

    samples: int
    """Samples in it."""
    tensor: int
    """Ranks that divide the matrices."""
    context: int
    """Ranks that divide each sequence."""
    width: int
    """Bytes of an activation inside the blocks."""
    stream_width: int
    """Bytes of an activation between the blocks."""
    casts: bool
    """Whether autocast converts the inputs of matrix products."""
    gpu: bool
    """Whether it is computed on a GPU."""
    checkpointing: Literal["none", "selective", "full"]
    """Activation checkpointing."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes of activations on one rank for one micro-batch."""

    block: int = 0
    """Kept by one block until its backward pass; by the whole model, if it has no blocks."""
    working: int = 0
    """Used besides in the backward pass of one block: gradients inside of it, and what is recomputed."""
    end: int = 0
    """Kept by the last norm and the head."""
    logits: int = 0
    """One copy of the logits in float32."""
    scores: int = 0
    """One copy of the logits in the type in which the head computes them."""
    stream: int = 0
    """Residual stream: what one block passes to the next, and one pipeline stage to the next."""
    attention_scores: int = 0
    """Scores of each query and key in one attention, where no kernel avoids them; else 0."""
    attention_exchange: int = 0
    """Mean of the four exchanges of one attention in a context group: queries, keys, values and results."""
    expert_rows: int = 0
    """Input rows of the experts of one block, one for each token and each expert that it chooses; 0 without experts."""


C = TypeVar("C", bound=ModelConfig)


class ModelFamily(ABC, Generic[C]):
    """A family of models, without its implementation, which `trainyard_trainer.models` holds."""

    name: ClassVar[str]
    """Value of spec.trainer.model.name."""
    description: ClassVar[str]
    """Architecture and task in a phrase, for the reference of spec.trainer.model.name."""
    fields: ClassVar[type[ApiModel]]
    """Its fields in spec.trainer.model, all optional; a family may share fields of the same type with others."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named shapes: values by field; empty if it has no presets. Rules can compare a size that all of them have."""
    data_source: ClassVar[Literal["text", "table"]] = "text"
    """Value of spec.trainer.data.source that it learns from."""
    supports: ClassVar[frozenset[Feature]] = frozenset()
    """Features that it supports."""
    reasons: ClassVar[Mapping[Feature, str]] = {}
    """Why it does not support some feature, as a clause for error messages."""
    estimated: ClassVar[bool] = True
    """Whether its sizes are known without the workers, so that memory and traffic can be estimated."""
    auxiliary_loss: ClassVar[bool] = False
    """Whether a layer adds the gradient of a loss of its own, which DistributedDataParallel would scale wrongly."""
    size_rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules between its fields, `self` being spec.trainer.model; families that share a rule share the object."""
    layout_rules: ClassVar[tuple[LayoutRule, ...]] = ()
    """Rules between its sizes and the layout of the ranks."""
    architectures: ClassVar[Mapping[str, str]] = {}
    """Values of `architectures` in the config.json of a Hugging Face folder that the family reads and writes, classes
    of transformers, with the `model_type` of each; empty if it reads and writes none."""

    @property
    @abstractmethod
    def config(self) -> type[C]:
        """Type of its resolved sizes; its field `name` is a Literal of the family's name."""

    @abstractmethod
    def resolve(self, given: Mapping[str, Any], data: DataShape) -> C:
        """Return the sizes of a model, given the fields that the user has set (by their names in the CRD)."""

    def completed(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes from a checkpoint, with the defaults of fields that its version of the trainer did not have.

        Sizes of another family are returned as they are.
        """
        try:
            return self.config.model_validate(saved).to_dict()
        except ValidationError:
            return dict(saved)

    def sizes_of_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Return sizes that a configuration may lack since only workers know them, by the shapes of all tensors."""
        return {}

    def own_fields(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of some fields in spec.trainer.model (names as in the CRD) that this family has."""
        names = {info.alias or name for name, info in self.fields.model_fields.items()}
        return {name: value for name, value in given.items() if name in names}

    def from_hugging_face(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sizes in a config.json, by the names that they have in a resolved configuration.

        Raises:
            ValueError: a field of it is absent or has a value that the family does not support; the message names it.
        """
        raise NotImplementedError(f"{self.name} has no architectures")

    def to_hugging_face(self, config: C) -> dict[str, Any]:
        """Return the content of a config.json, without what depends on the tokenizer."""
        raise NotImplementedError(f"{self.name} has no architectures")

    def problems(self, config: C, preset: str) -> list[str]:
        """Return what is wrong with the resolved sizes that no rule of the CRD can see: field, rule and fix."""
        return []

    def tokens_per_sample(self, config: C) -> int:
        """Return the number of predictions for one sample: one for each token of a text, one for a row of a table."""
        return 1

    def layers(self, config: C) -> int:
        """Return the number of blocks; 0 for a model without blocks."""
        return 0

    def divides_evenly(self, config: C, *, tensor: int = 1, context: int = 1, expert: int = 1) -> bool:
        """Return whether the sizes are multiples of what divides them."""
        return tensor == context == expert == 1

    @abstractmethod
    def active_parameters(self, config: C) -> int:
        """Return the number of scalars that one token passes through: of experts, only those that it chooses."""

    @abstractmethod
    def rank_parameters(self, config: C, part: ModelPart) -> RankParameters:
        """Return the sizes of a part of the model. Parameters that no axis divides count in full."""

    def matrix_shapes(self, config: C) -> Mapping[str, tuple[int, int]]:
        """Return the shapes [out, in] of the matrices of a block that can have adapters, by the names of `Lora`."""
        return {}

    def parameters(self, config: C) -> int:
        """Return the number of trained scalars of the whole model."""
        return self.rank_parameters(config, ModelPart(stages=(self.layers(config),))).total

    def multiplied(self, config: C) -> int:
        """Return the number of scalars that a token is multiplied with: not those of which it takes one row."""
        return self.active_parameters(config)

    @abstractmethod
    def flops_per_token(self, config: C) -> int:
        """Return the floating-point operations of training on one token (of a table: one row), nothing recomputed."""

    @abstractmethod
    def activations(self, config: C, batch: MicroBatch) -> Activations:
        """Return the memory of activations on one rank."""
