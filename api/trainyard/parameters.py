"""How many parameters a model has, and which of them a rank computes with."""

from dataclasses import dataclass
from itertools import pairwise

from trainyard.config import GptConfig, RunConfig
from trainyard.stages import layers_of_stage, stage_count, stages_of_rank

DIGITS_FEATURES, DIGITS_CLASSES = 64, 10


@dataclass(frozen=True, slots=True)
class RankParameters:
    """Scalars of the parameters that a rank computes with, once they are gathered: its layers, its part of matrices."""

    layers: int
    """Blocks of this rank."""
    chunk_layers: int
    """Blocks of its largest stage; some schedules give a rank two stages."""
    dense: int
    """Of one block, without its experts."""
    experts: int
    """Of the experts of one block that this rank has; 0 if the model has none."""
    embedding: int
    """Of the embedding; 0 if another rank has it."""
    head: int
    """Of head and last norm; 0 if another rank has them."""
    matrices: int
    """Of all matrices inside the blocks, without experts."""

    @property
    def block(self) -> int:
        """Of one block."""
        return self.dense + self.experts

    @property
    def outer(self) -> int:
        """Outside of the blocks."""
        return self.embedding + self.head

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers * self.block + self.outer

    def held(self, shards: int, expert_shards: int) -> int:
        """Scalars that stay on this rank, if that many ranks share parameters, and experts."""
        return (self.layers * self.dense + self.outer) // shards + self.layers * self.experts // expert_shards


def dense_matrices(model: GptConfig) -> int:
    """Scalars in the matrices of one block that every token goes through: q and o, k and v; gate, up and down, or the
    router of a moe.
    """
    kv_dim = model.dim // model.heads * model.kv_heads
    rest = model.mixture.experts if model.mixture else 3 * model.ffn_dim
    return model.dim * (2 * model.dim + 2 * kv_dim + rest)


def expert_matrices(model: GptConfig) -> int:
    """Scalars in gate, up and down of one expert; 0 without experts."""
    return 3 * model.dim * model.ffn_dim if model.mixture else 0


def gpt_parameters(model: GptConfig, active: bool = False) -> int:
    """Scalars of the whole model, or of what a token goes through; embedding and head are two matrices."""
    block = dense_matrices(model) + 2 * model.dim
    if model.mixture:
        block += (model.mixture.experts_per_token if active else model.mixture.experts) * expert_matrices(model)
    return model.layers * block + 2 * model.vocab_size * model.dim + model.dim


def mlp_parameters(config: RunConfig) -> int:
    """Scalars of an mlp; of data in a file, whose width only the worker knows, those between hidden layers alone."""
    assert config.model.name == "mlp"
    known = config.trainer.data.builtin == "digits"
    sizes = (DIGITS_FEATURES, *config.model.hidden, DIGITS_CLASSES) if known else config.model.hidden
    return sum((into + 1) * out for into, out in pairwise(sizes))


def rank_parameters(config: RunConfig, place: int) -> RankParameters:
    """The part of a gpt on the ranks at one place of the pipeline. Norms stay whole where matrices are split."""
    model, tensor, pipeline = config.gpt, config.mesh.tensor, config.parallelism.pipeline
    stages = stages_of_rank(pipeline, place)
    chunks = [len(layers_of_stage(pipeline, model.layers, stage)) for stage in stages]
    vocabulary = model.vocab_size * model.dim // tensor
    matrices = dense_matrices(model) // tensor
    experts = model.mixture.experts // config.mesh.expert * expert_matrices(model) if model.mixture else 0
    return RankParameters(
        layers=sum(chunks),
        chunk_layers=max(chunks),
        dense=matrices + 2 * model.dim,
        experts=experts,
        embedding=vocabulary if 0 in stages else 0,
        head=vocabulary + model.dim if stage_count(pipeline) - 1 in stages else 0,
        matrices=sum(chunks) * matrices,
    )
