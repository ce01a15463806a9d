"""Decoder-only transformers in the shape of Llama: what families of this kind share.

Activations follow section 4 of Korthikanti et al., 2022. That paper counts a GPT-3 in 16 bits, with dropout and a kept
softmax; these models have RMSNorm, SwiGLU, grouped queries, and an attention that keeps only one logarithm for each
query instead of the scores (Dao et al., 2022) where PyTorch has a kernel for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from trainyard.base import Rule
from trainyard.models.decoder_sizes import DecoderConfig
from trainyard.models.family import (
    DEFAULT_PRESET,
    FULL_BYTES,
    Activations,
    DataShape,
    LayoutRule,
    MicroBatch,
    ModelFamily,
    ModelPart,
    RankParameters,
)
from trainyard.models.hugging_face import architecture, decoder_config, decoder_fields
from trainyard.models.presets import WITH_HEAD_DIM

HEADS = Rule(
    "!has(self.heads) || !has(self.kvHeads) || self.heads % self.kvHeads == 0",
    "spec.trainer.model.heads: must be a multiple of kvHeads; change heads or kvHeads",
)
EVEN_HEADS = Rule(
    "!has(self.headDim) || self.headDim % 2 == 0",
    "spec.trainer.model.headDim: must be even, since rotary positions rotate pairs; change it",
)
WIDTH = Rule(
    f"!has(self.dim) || !has(self.heads) || has(self.headDim) || (has(self.preset) && self.preset in {WITH_HEAD_DIM})"
    " || self.dim % (2 * self.heads) == 0",
    "spec.trainer.model.dim: must be a multiple of 2 x heads (rotary positions need heads of even width); change dim "
    "or heads",
)
WHOLE_HEADS = LayoutRule(
    "{heads} % ({tensor} * {context}) == 0 && {kvHeads} % ({tensor} * {context}) == 0",
    "spec.parallelism: tensor x context must divide the model's heads and kvHeads, since each rank computes whole "
    "heads; lower one of them, or choose another spec.trainer.model.heads or kvHeads",
)
FEED_FORWARD = LayoutRule(
    "{ffnDim} % {tensor} == 0",
    "spec.parallelism.tensor: must divide the model's ffnDim; lower it, or change spec.trainer.model.ffnDim",
)
VOCABULARY = LayoutRule(
    "{vocabulary} % {tensor} == 0",
    "spec.parallelism.tensor: must divide the vocabulary (256 for bytes, else spec.trainer.data.vocabSize); lower it, "
    "or change the vocabulary",
)
TIED = LayoutRule(
    "!{tiedEmbeddings} || {totalStages} == 1",
    "spec.trainer.model.tiedEmbeddings: does not work with a pipeline, whose first stage has the embedding and whose "
    "last one has the head; set it to false, or remove spec.parallelism.pipeline",
)
SEQUENCE = LayoutRule(
    "{sequenceLength} % ({tensor} * {context}) == 0",
    "spec.trainer.data.sequenceLength: must be a multiple of tensor x context, which split the sequence; change it or "
    "the axes",
)


FULL_STAGES = LayoutRule(
    "{layers} >= {totalStages}",
    "spec.parallelism.pipeline.stages: each stage needs a layer, and with Interleaved1F1B and ZBV each rank has two "
    "stages; use fewer stages, another schedule, or more layers",
)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Bytes of activations of one feed-forward network, or of the experts in its place."""

    kept: int
    """Kept until the backward pass."""
    products: int
    """Results of matrix products among them, which selective checkpointing keeps."""
    working: int
    """Used besides in the backward pass."""
    rows: int = 0
    """Input rows of experts."""


D = TypeVar("D", bound=DecoderConfig)


class DecoderFamily(ModelFamily[D], Generic[D]):
    """Embedding, blocks of attention and feed-forward network, norm and head."""

    size_rules: ClassVar[tuple[Rule, ...]] = (WIDTH, HEADS, EVEN_HEADS)
    layout_rules: ClassVar[tuple[LayoutRule, ...]] = (
        WHOLE_HEADS,
        FEED_FORWARD,
        VOCABULARY,
        SEQUENCE,
        FULL_STAGES,
        TIED,
    )

    def resolve(self, given: Mapping[str, Any], data: DataShape) -> D:
        """Return the preset's shape with the user's fields in place of some, and the vocabulary of the data."""
        own = self.own_fields(given)
        shape = {"vocabSize": data.vocabulary, "sequenceLength": data.sequence_length}
        fields = {**self.presets[given.get("preset", DEFAULT_PRESET)], **own, **shape}
        if fields.get("ropeScaling", {}).get("type") == "none":
            del fields["ropeScaling"]
        return self.config.model_validate({"name": self.name, **fields})

    def from_hugging_face(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sizes in a config.json, by the names that they have in a resolved configuration."""
        fields = decoder_fields(content)
        return {**fields, "qkNorm": self.architectures[architecture(content)].startswith("qwen3")}

    def to_hugging_face(self, config: D) -> dict[str, Any]:
        """Return the content of a config.json; norms of queries and keys make a model one of Qwen 3."""
        name = next(n for n, kind in self.architectures.items() if kind.startswith("qwen3") == config.qk_norm)
        return decoder_config(config, name, self.architectures[name])

    def problems(self, config: D, preset: str) -> list[str]:
        """Return what is wrong with sizes of which some are the preset's."""
        found = []
        if not config.head_dim:
            found.append(
                f"spec.trainer.model.dim: {config.dim} must be a multiple of 2 x heads = {2 * config.heads} "
                f"(preset {preset} with your overrides); change dim or heads, or set headDim"
            )
        if config.heads % config.kv_heads:
            found.append(
                f"spec.trainer.model.heads: {config.heads} must be a multiple of kvHeads = {config.kv_heads} "
                f"(preset {preset} with your overrides); change heads or kvHeads"
            )
        return found

    def tokens_per_sample(self, config: D) -> int:
        """Return the sequence length."""
        return config.sequence_length

    def layers(self, config: D) -> int:
        """Return the number of transformer blocks."""
        return config.layers

    def divides_evenly(self, config: D, *, tensor: int = 1, context: int = 1, expert: int = 1) -> bool:
        """Return whether the `layout_rules` hold."""
        whole = not any(size % (tensor * context) for size in (config.heads, config.kv_heads, config.sequence_length))
        return whole and not (config.ffn_dim % tensor or config.vocab_size % tensor) and expert == 1

    def matrices(self, config: D) -> int:
        """Return the scalars of the matrices of one block: of attention, and of what stands behind it."""
        return config.dim * 2 * (config.q_dim + config.kv_dim) + self.feed_forward_matrices(config)

    def feed_forward_matrices(self, config: D) -> int:
        """Return the scalars of gate, up and down."""
        return 3 * config.dim * config.ffn_dim

    def largest_matrix(self, config: D) -> int:
        """Return the scalars of the largest matrix of a block."""
        return config.dim * max(config.ffn_dim, config.q_dim)

    def largest(self, config: D, part: ModelPart) -> int:
        """Return the scalars of the largest parameter of a block on one rank."""
        return self.largest_matrix(config) // part.tensor

    def experts(self, config: D) -> tuple[int, int]:
        """Return the scalars of all experts of one block, and of those that a token chooses."""
        return 0, 0

    def active_parameters(self, config: D) -> int:
        """Return the number of scalars that a token passes through."""
        unused, active = self.experts(config)
        return self.parameters(config) - config.layers * (unused - active)

    def rank_parameters(self, config: D, part: ModelPart) -> RankParameters:
        """Return the sizes of a part of the model. Norms stay undivided; a tied head has the embedding's matrix."""
        layers = sum(part.stages)
        vocabulary = config.vocab_size * config.dim // part.tensor
        matrices = self.matrices(config) // part.tensor
        norms = 2 * config.dim + (2 * config.head_dim if config.qk_norm else 0)
        head = config.dim + (0 if config.tied_embeddings else vocabulary)
        return RankParameters(
            layers=layers,
            chunk_layers=max(part.stages),
            block=matrices + norms,
            experts=self.experts(config)[0] // part.expert,
            embedding=vocabulary if part.first else 0,
            head=head if part.last else 0,
            matrices=layers * matrices,
            largest=self.largest(config, part),
            largest_matrix=self.largest_matrix(config),
        )

    def multiplied(self, config: D) -> int:
        """Return the number of scalars that a token is multiplied with: all that it uses, but its embedding."""
        return self.active_parameters(config) - (0 if config.tied_embeddings else config.vocab_size * config.dim)

    def flops_per_token(self, config: D) -> int:
        """Return the floating-point operations of one token (Chowdhery et al., 2022).

        6 for each parameter that it is multiplied with, so of an embedding for the head alone, and 12 x layers x width
        of the queries x sequence length for the attention.
        """
        return 6 * self.multiplied(config) + 12 * config.layers * config.q_dim * config.sequence_length

    def activations(self, config: D, batch: MicroBatch) -> Activations:
        """Return the memory of activations on one rank.

        A tensor group divides the residual stream by positions and the rest by heads and columns; each rank gathers the
        inputs of its matrices.
        """
        tokens = batch.samples * config.sequence_length // batch.context
        own_tokens = tokens // batch.tensor
        stream = batch.stream_width * tokens * config.dim // batch.tensor
        inputs = batch.width * tokens * config.dim
        # CUDA has one kernel for a norm, which keeps its input only; on a CPU it is computed and kept in float32.
        norm = stream if batch.gpu else 2 * FULL_BYTES * tokens * config.dim // batch.tensor
        # autocast converts the input for each of q, k and v.
        input_copies = 3 if batch.casts else 1
        logarithms = FULL_BYTES * own_tokens * config.heads
        queries_to_results = batch.width * own_tokens * 2 * (config.q_dim + config.kv_dim)
        # The norm of queries and keys keeps its inputs as that of the residual stream does.
        before_norm = (batch.width if batch.gpu else 2 * FULL_BYTES) * own_tokens * (config.q_dim + config.kv_dim)
        # Kernels for grouped queries take 16 bits only. In float32 CUDA computes with all scores, of which it keeps the
        # softmax; a CPU has a kernel for both.
        grouped = batch.gpu and batch.width == FULL_BYTES and config.heads != config.kv_heads
        scores = FULL_BYTES * own_tokens * config.heads * config.sequence_length if grouped else 0
        attention = queries_to_results + (scores or logarithms)
        feed_forward = self.feed_forward(config, batch, tokens)
        everything = 2 * norm + input_copies * inputs + attention + feed_forward.kept
        everything += before_norm if config.qk_norm else 0
        kept = {
            "none": everything,
            "selective": stream + (attention - scores) + inputs + feed_forward.products,
            "full": stream,
        }[batch.checkpointing]
        heads = batch.width * tokens * config.q_dim // batch.tensor
        return Activations(
            block=kept,
            # In the backward pass there are the gradients of the softmax and of the scores besides.
            working=everything - kept + max(feed_forward.working, 2 * scores),
            end=norm + inputs,
            logits=FULL_BYTES * tokens * config.vocab_size // batch.tensor,
            scores=batch.width * tokens * config.vocab_size // batch.tensor,
            stream=stream,
            attention_scores=scores,
            attention_exchange=heads * (config.heads + config.kv_heads) // (2 * config.heads),
            expert_rows=feed_forward.rows,
        )

    def feed_forward(self, config: D, batch: MicroBatch, tokens: int) -> FeedForward:
        """Return the memory of one network: its input, and the results of gate, up, silu and their product."""
        inputs = batch.width * tokens * config.dim
        inner = batch.width * tokens // batch.tensor * config.ffn_dim
        return FeedForward(
            kept=(2 if batch.casts else 1) * inputs + 4 * inner,
            products=2 * inner + inputs,
            working=2 * inner + 2 * inputs,
        )
