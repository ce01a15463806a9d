"""The family `moe`: a Llama with experts in place of each feed-forward network, as in Mixtral (Jiang et al., 2024)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Positive, Rule
from trainyard.models.decoder import (
    FULL_STAGES,
    SEQUENCE,
    TIED,
    WHOLE_HEADS,
    DecoderFamily,
    FeedForward,
)
from trainyard.models.decoder_sizes import DecoderConfig, DecoderFields
from trainyard.models.family import FULL_BYTES, Feature, LayoutRule, MicroBatch, ModelPart
from trainyard.models.hugging_face import check_values, positive
from trainyard.models.presets import MOE, Shape

DEFAULT_BALANCE_LOSS_WEIGHT = 0.01
INDEX_BYTES = 8
"""Bytes of a row's number."""


class MoeFields(DecoderFields):
    """Fields of a moe in spec.trainer.model."""

    ffn_dim: Positive | None = None
    """Hidden width of each expert."""
    experts: Annotated[int, Field(ge=2, le=4096)] | None = None
    """Number of experts in each block."""
    experts_per_token: Positive | None = None
    """Number of experts that each token is routed to; no token is dropped."""
    balance_loss_weight: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Weight of the auxiliary loss that balances the load of the experts of each block over every sequence
    (DeepSeek-V3, 2024). Default: 0.01. The reported loss is the cross-entropy alone."""


class MoeConfig(DecoderConfig):
    """Resolved sizes of a moe."""

    name: Literal["moe"] = "moe"
    """Name of the family."""
    experts: int
    """Number of experts in each block."""
    experts_per_token: int
    """Number of experts that each token is routed to."""
    balance_loss_weight: float = DEFAULT_BALANCE_LOSS_WEIGHT
    """Weight of the auxiliary loss."""


ALIGNED = Rule(
    "(!has(self.dim) || self.dim % 8 == 0) && (!has(self.ffnDim) || self.ffnDim % 8 == 0)",
    "spec.trainer.model: dim and ffnDim of a moe must be multiples of 8, which the grouped matrix product of all "
    "experts needs; change them",
)
EXPERTS = LayoutRule(
    "{experts} % {expert} == 0",
    "spec.parallelism.expert: must divide the model's experts, since each rank holds equally many; lower it, or change "
    "spec.trainer.model.experts",
)
EXPERTS_PER_TOKEN = LayoutRule(
    "{expertsPerToken} <= {experts}",
    "spec.trainer.model.expertsPerToken: must be at most the model's experts; lower it, or raise "
    "spec.trainer.model.experts",
)


class MoeFamily(DecoderFamily[MoeConfig]):
    """Mixture of experts."""

    name: ClassVar[str] = "moe"
    description: ClassVar[str] = (
        "a llama whose feed-forward networks are replaced by many experts, of which a router chooses a few for each "
        "token (as in Mixtral; with qkNorm as in Qwen 3)"
    )
    fields: ClassVar[type[ApiModel]] = MoeFields
    presets: ClassVar[Mapping[str, Shape]] = MOE
    architectures: ClassVar[Mapping[str, str]] = {"MixtralForCausalLM": "mixtral", "Qwen3MoeForCausalLM": "qwen3_moe"}
    supports: ClassVar[frozenset[Feature]] = frozenset(
        {"context", "pipeline", "expert", "activationCheckpointing", "isolatedDocuments"}
    )
    reasons: ClassVar[Mapping[Feature, str]] = {
        "tensor": "the experts of a moe are split by spec.parallelism.expert",
        "parameterServer": "the load of the experts is balanced inside the layers",
        "compile": "the route of a token through a moe is not known in advance",
        "fullBatch": "the load of the experts is balanced over batches",
        "explain": "the choice of experts changes in jumps, which no gradient sees",
        "privacy": "which experts a token uses depends on other samples, by the loss that balances them",
    }
    auxiliary_loss: ClassVar[bool] = True
    size_rules: ClassVar[tuple[Rule, ...]] = (*DecoderFamily.size_rules, ALIGNED)
    layout_rules: ClassVar[tuple[LayoutRule, ...]] = (
        WHOLE_HEADS,
        SEQUENCE,
        FULL_STAGES,
        TIED,
        EXPERTS,
        EXPERTS_PER_TOKEN,
    )

    @property
    def config(self) -> type[MoeConfig]:
        """Type of its resolved sizes."""
        return MoeConfig

    def from_hugging_face(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sizes in a config.json, by the names that they have in a resolved configuration."""
        fields = super().from_hugging_face(content)
        if fields["qkNorm"]:
            check_values(content, {"norm_topk_prob": True})
            for name, value in {"decoder_sparse_step": 1, "mlp_only_layers": []}.items():
                check_values({name: value, **content}, {name: value})
            fields["ffnDim"] = positive(content, "moe_intermediate_size")
        experts = "num_local_experts" if "num_local_experts" in content else "num_experts"
        fields["experts"] = positive(content, experts)
        fields["expertsPerToken"] = positive(content, "num_experts_per_tok")
        return fields

    def to_hugging_face(self, config: MoeConfig) -> dict[str, Any]:
        """Return the content of a config.json."""
        experts: dict[str, Any] = {
            "num_local_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
            "router_aux_loss_coef": config.balance_loss_weight,
            "output_router_logits": False,
        }
        if config.qk_norm:
            experts |= {"num_experts": config.experts, "moe_intermediate_size": config.ffn_dim, "norm_topk_prob": True}
        return super().to_hugging_face(config) | experts

    def divides_evenly(self, config: MoeConfig, *, tensor: int = 1, context: int = 1, expert: int = 1) -> bool:
        """Return whether the `layout_rules` hold."""
        return super().divides_evenly(config, context=context) and tensor == 1 and config.experts % expert == 0

    def feed_forward_matrices(self, config: MoeConfig) -> int:
        """Return the scalars of the router; experts are stacks of matrices."""
        return config.dim * config.experts

    def largest_matrix(self, config: MoeConfig) -> int:
        """Return the scalars of the largest matrix of a block: of attention, or the router."""
        return config.dim * max(config.q_dim, config.experts)

    def largest(self, config: MoeConfig, part: ModelPart) -> int:
        """Return the scalars of one stack of experts on one rank."""
        return config.dim * config.ffn_dim * (config.experts // part.expert)

    def experts(self, config: MoeConfig) -> tuple[int, int]:
        """Return the scalars of all experts of one block, and of those that a token chooses."""
        expert = 3 * config.dim * config.ffn_dim
        return config.experts * expert, config.experts_per_token * expert

    def feed_forward(self, config: MoeConfig, batch: MicroBatch, tokens: int) -> FeedForward:
        """Return the memory of one layer of experts.

        Kept are the router's input and probabilities, the rows in order of their experts, and their results in order of
        the tokens. In an expert group as many rows arrive as leave if the load is balanced, which is assumed here.
        """
        # On a CPU experts are computed in float32 (`parallel.parallelize`).
        width = batch.width if batch.gpu else FULL_BYTES
        rows_count = tokens * config.experts_per_token
        rows, inner = width * rows_count * config.dim, width * rows_count * config.ffn_dim
        permutations = 2 * INDEX_BYTES * rows_count
        probabilities = 2 * FULL_BYTES * tokens * config.experts
        return FeedForward(
            kept=batch.width * tokens * config.dim + probabilities + 2 * rows + 4 * inner + permutations,
            products=probabilities // 2 + 2 * inner + rows,
            working=2 * inner + 3 * rows,
            rows=rows,
        )
