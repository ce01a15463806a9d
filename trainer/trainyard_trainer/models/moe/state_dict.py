"""Names of the parameters of a moe in checkpoints of Hugging Face's MixtralForCausalLM."""

from trainyard_trainer.models.llama.state_dict import ATTENTION, OUTER
from trainyard_trainer.models.names import HuggingFaceNames

HUGGING_FACE = HuggingFaceNames(
    "MixtralForCausalLM",
    outer=OUTER,
    block={**ATTENTION, "feed_forward.router.weight": "block_sparse_moe.gate.weight"},
    experts={
        "feed_forward.experts.gate": "block_sparse_moe.experts.{}.w1.weight",
        "feed_forward.experts.down": "block_sparse_moe.experts.{}.w2.weight",
        "feed_forward.experts.up": "block_sparse_moe.experts.{}.w3.weight",
    },
)
