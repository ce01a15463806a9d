"""Small models with random weights that transformers saves."""

from pathlib import Path
from typing import Any

import torch

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama 3.2": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
        },
    ),
}
"""Prefix of the classes of transformers, and what is special in the configuration."""


def make_model(name: str, **sizes: Any) -> Any:
    """Return a model of transformers with random weights, always the same."""
    import transformers

    prefix, special = MODELS[name]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **special, **sizes})
    torch.manual_seed(1)
    return getattr(transformers, f"{prefix}ForCausalLM")(config).eval()


def with_base(model: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return spec.trainer.model of a run that begins with a random Llama of its sizes, saved in a folder.

    `model`: its fields; those that it leaves out are the ones of `tests.support.run_config`.
    """
    sizes = {"dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64, **model}
    names = {
        "dim": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kvHeads": "num_key_value_heads",
        "ffnDim": "intermediate_size",
    }
    if not folder.exists():
        there = {there: sizes[here] for here, there in names.items()}
        save_model("llama", folder, vocab_size=256, rms_norm_eps=1e-5, **there)
    return {**model, "from": {"path": str(folder)}}


def save_model(name: str, folder: Path, shard: str = "5GB", **sizes: Any) -> Path:
    """Save a model as its users do, and return the folder."""
    make_model(name, **sizes).save_pretrained(folder, max_shard_size=shard)
    return folder
