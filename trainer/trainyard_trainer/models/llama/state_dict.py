"""Names of the parameters of a llama in checkpoints of Hugging Face: LlamaForCausalLM, with qkNorm Qwen3ForCausalLM.

The values are the same: matrices are [out, in] in both, and pairs of rotary positions are (i, i + E / 2) in both.
"""

from trainyard.models.decoder_sizes import DecoderConfig
from trainyard_trainer.models.names import HuggingFaceNames

FEED_FORWARD = {
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
}


def outer_names(config: DecoderConfig) -> dict[str, str]:
    """Return the names of the parameters outside of the blocks; a tied head has none of its own, here nor there."""
    head = {} if config.tied_embeddings else {"head.weight": "lm_head.weight"}
    return {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", **head}


def attention_names(config: DecoderConfig) -> dict[str, str]:
    """Return the names of the parameters of attention and of the two norms of a block."""
    names = {
        "attention_norm.weight": "input_layernorm.weight",
        "attention.q.weight": "self_attn.q_proj.weight",
        "attention.k.weight": "self_attn.k_proj.weight",
        "attention.v.weight": "self_attn.v_proj.weight",
        "attention.o.weight": "self_attn.o_proj.weight",
        "feed_forward_norm.weight": "post_attention_layernorm.weight",
    }
    norms = {"attention.q_norm.weight": "self_attn.q_norm.weight", "attention.k_norm.weight": "self_attn.k_norm.weight"}
    return {**names, **(norms if config.qk_norm else {})}


def hugging_face_names(config: DecoderConfig) -> HuggingFaceNames:
    """Return the names of a llama, or of a Qwen 3, which has the same except for the norms of queries and keys."""
    architecture = "Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"
    return HuggingFaceNames(architecture, outer_names(config), {**attention_names(config), **FEED_FORWARD})
