"""Names of the parameters of a llama in checkpoints of Hugging Face's LlamaForCausalLM.

The values are the same: matrices are [out, in] in both, and pairs of rotary positions are (i, i + E / 2) in both.
"""

from trainyard_trainer.models.names import HuggingFaceNames

OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
ATTENTION = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.o.weight": "self_attn.o_proj.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}
FEED_FORWARD = {
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
}
HUGGING_FACE = HuggingFaceNames("LlamaForCausalLM", outer=OUTER, block={**ATTENTION, **FEED_FORWARD})
