"""How many parameters a model has, and which of them a rank computes with."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from trainyard.stages import layers_of_stage, stage_count, stages_of_rank

if TYPE_CHECKING:
    from trainyard.resolve import GptConfig, RunConfig

DIGITS_FEATURES, DIGITS_CLASSES = 64, 10


@dataclass(frozen=True, slots=True)
class RankParameters:
    """Scalars of the parameters that a rank computes with, once they are gathered: its layers, its part of matrices."""

    layers: int
    """Blocks of this rank."""
    chunk_layers: int
    """Blocks of its largest stage; some schedules give a rank two stages."""
    block: int
    """Of one block."""
    embedding: int
    """Of the embedding; 0 if another rank has it."""
    head: int
    """Of head and last norm; 0 if another rank has them."""
    matrices: int
    """Of all matrices inside the blocks."""

    @property
    def outer(self) -> int:
        """Outside of the blocks."""
        return self.embedding + self.head

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers * self.block + self.outer


def block_matrices(model: "GptConfig") -> int:
    """Scalars in the matrices of one block: q and o, k and v, gate, up and down."""
    kv_dim = model.dim // model.heads * model.kv_heads
    return model.dim * (2 * model.dim + 2 * kv_dim + 3 * model.ffn_dim)


def gpt_parameters(model: "GptConfig") -> int:
    """Scalars of the whole model; embedding and head are two matrices."""
    return model.layers * (block_matrices(model) + 2 * model.dim) + 2 * model.vocab_size * model.dim + model.dim


def mlp_parameters(config: "RunConfig") -> int:
    """Scalars of an mlp; of data in a file, whose width only the worker knows, those between hidden layers alone."""
    assert config.model.name == "mlp"
    known = config.trainer.data.builtin == "digits"
    sizes = (DIGITS_FEATURES, *config.model.hidden, DIGITS_CLASSES) if known else config.model.hidden
    return sum((into + 1) * out for into, out in pairwise(sizes))


def rank_parameters(config: "RunConfig", place: int) -> RankParameters:
    """The part of a gpt on the ranks at one place of the pipeline. Norms stay whole where matrices are split."""
    model, tensor, pipeline = config.gpt, config.mesh.tensor, config.parallelism.pipeline
    stages = stages_of_rank(pipeline, place)
    chunks = [len(layers_of_stage(pipeline, model.layers, stage)) for stage in stages]
    vocabulary = model.vocab_size * model.dim // tensor
    matrices = block_matrices(model) // tensor
    return RankParameters(
        layers=sum(chunks),
        chunk_layers=max(chunks),
        block=matrices + 2 * model.dim,
        embedding=vocabulary if 0 in stages else 0,
        head=vocabulary + model.dim if stage_count(pipeline) - 1 in stages else 0,
        matrices=sum(chunks) * matrices,
    )
