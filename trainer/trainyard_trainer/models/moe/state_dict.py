"""Names of a moe in Hugging Face checkpoints: MixtralForCausalLM, and with qkNorm Qwen3MoeForCausalLM."""

from trainyard.models.moe import MoeConfig
from trainyard_trainer.models.llama.state_dict import attention_names, outer_names
from trainyard_trainer.models.names import HuggingFaceNames

_ROUTER = "feed_forward.router.weight"
_GATE, _UP, _DOWN = (f"feed_forward.experts.{name}" for name in ("gate", "up", "down"))


def hugging_face_names(config: MoeConfig) -> HuggingFaceNames:
    """Return the names of a Mixtral, or with norms of queries and keys those of a Qwen 3."""
    outer, attention = outer_names(config), attention_names(config)
    if config.qk_norm:
        experts = {_GATE: "gate_proj", _UP: "up_proj", _DOWN: "down_proj"}
        return HuggingFaceNames(
            "Qwen3MoeForCausalLM",
            outer,
            {**attention, _ROUTER: "mlp.gate.weight"},
            {here: f"mlp.experts.{{}}.{there}.weight" for here, there in experts.items()},
        )
    experts = {_GATE: "w1", _DOWN: "w2", _UP: "w3"}
    return HuggingFaceNames(
        "MixtralForCausalLM",
        outer,
        {**attention, _ROUTER: "block_sparse_moe.gate.weight"},
        {here: f"block_sparse_moe.experts.{{}}.{there}.weight" for here, there in experts.items()},
    )
