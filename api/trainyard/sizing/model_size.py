"""How many parameters a model has, which of them a rank computes with, and what a token costs."""

from dataclasses import dataclass
from itertools import pairwise

from trainyard.config import RunConfig, TransformerConfig
from trainyard.sizing.pipeline_stages import layers_of_stage, stage_count, stages_of_rank

DIGITS_FEATURES, DIGITS_CLASSES, DIGITS_SAMPLES = 64, 10, 1797


@dataclass(frozen=True, slots=True)
class RankParameters:
    """Scalars of the parameters that a rank computes with, once they are gathered: its layers, its part of matrices."""

    layers: int
    """Blocks of this rank."""
    chunk_layers: int
    """Blocks of its largest stage; some schedules give a rank two stages."""
    block: int
    """Of one block, without those of `experts`."""
    experts: int
    """In the stacks of experts of one block, of which this rank has its part; 0 without a mixture."""
    embedding: int
    """Of the embedding; 0 if another rank has it."""
    head: int
    """Of head and last norm; 0 if another rank has them."""
    matrices: int
    """Of all matrices inside the blocks; stacks are none."""

    @property
    def outer(self) -> int:
        """Outside of the blocks."""
        return self.embedding + self.head

    @property
    def dense(self) -> int:
        """All but those of `stacked`."""
        return self.layers * self.block + self.outer

    @property
    def stacked(self) -> int:
        """In the stacks of all blocks."""
        return self.layers * self.experts

    @property
    def total(self) -> int:
        """All of them."""
        return self.dense + self.stacked


def expert_parameters(model: TransformerConfig) -> int:
    """Scalars of one expert: gate, up and down."""
    return 3 * model.dim * model.ffn_dim


def block_matrices(model: TransformerConfig) -> int:
    """Scalars in the matrices of one block: q and o, k and v; gate, up and down, or the router of a mixture."""
    kv_dim = model.dim // model.heads * model.kv_heads
    feed_forward = expert_parameters(model) if model.mixture is None else model.dim * model.mixture.experts
    return model.dim * (2 * model.dim + 2 * kv_dim) + feed_forward


def transformer_parameters(model: TransformerConfig) -> int:
    """Scalars of the whole model; embedding and head are two matrices."""
    experts = 0 if model.mixture is None else model.mixture.experts
    return _llama_with(model, experts)


def active_parameters(model: TransformerConfig) -> int:
    """Those of them that a token goes through: of a mixture the experts that it chooses."""
    return _llama_with(model, 0 if model.mixture is None else model.mixture.experts_per_token)


def _llama_with(model: TransformerConfig, experts: int) -> int:
    block = block_matrices(model) + 2 * model.dim + experts * expert_parameters(model)
    return model.layers * block + 2 * model.vocab_size * model.dim + model.dim


def mlp_parameters(config: RunConfig) -> int:
    """Scalars of an mlp; of data in a file, whose width only the worker knows, those between hidden layers alone."""
    assert config.model.name == "mlp"
    known = config.trainer.data.builtin == "digits"
    sizes = (DIGITS_FEATURES, *config.model.hidden_sizes, DIGITS_CLASSES) if known else config.model.hidden_sizes
    return sum((into + 1) * out for into, out in pairwise(sizes))


def flops_per_token(config: RunConfig) -> int:
    """Floating-point operations that training on one token takes over all ranks, without what is computed again.

    6 for each parameter that it goes through but the embedding's, and 12 x layers x dim x sequence length for the
    attention (Chowdhery et al., 2022). Of an mlp a "token" is a sample.
    """
    if config.model.name == "mlp":
        return 6 * mlp_parameters(config)
    model = config.transformer
    through = active_parameters(model) - model.vocab_size * model.dim
    return 6 * through + 12 * model.layers * model.dim * model.sequence_length


def rank_parameters(config: RunConfig, place: int) -> RankParameters:
    """The part of a llama on the ranks at one place of the pipeline. Norms stay whole where matrices are split."""
    model, tensor, pipeline = config.transformer, config.mesh.tensor, config.parallelism.pipeline
    stages = stages_of_rank(pipeline, place)
    chunks = [len(layers_of_stage(pipeline, model.layers, stage)) for stage in stages]
    vocabulary = model.vocab_size * model.dim // tensor
    matrices = block_matrices(model) // tensor
    experts = 0 if model.mixture is None else model.mixture.experts // config.mesh.expert
    return RankParameters(
        layers=sum(chunks),
        chunk_layers=max(chunks),
        block=matrices + 2 * model.dim,
        experts=experts * expert_parameters(model),
        embedding=vocabulary if 0 in stages else 0,
        head=vocabulary + model.dim if stage_count(pipeline) - 1 in stages else 0,
        matrices=sum(chunks) * matrices,
    )
