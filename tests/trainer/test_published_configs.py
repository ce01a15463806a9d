"""config.json of published models: each is one of the presets, and is written as it was read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainyard.models import FAMILIES
from trainyard_trainer.weights.describe import describe
from trainyard_trainer.weights.weights import Weights

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "mlp_bias": False}
LLAMA3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
QWEN3 = {"hidden_act": "silu", "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None, "head_dim": 128}
QWEN3 |= {"use_sliding_window": False, "rms_norm_eps": 1e-06, "vocab_size": 151936, "max_position_embeddings": 40960}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3.2-1b": (
        "llama",
        {
            **LLAMA,
            "head_dim": 64,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {**LLAMA3, "rope_type": "llama3"},
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
        },
    ),
    "llama3-8b": (
        "llama",
        {
            **LLAMA,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 8192,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "vocab_size": 128256,
        },
    ),
    "qwen3-8b": (
        "llama",
        {
            **QWEN3,
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
    "mixtral-8x7b": (
        "moe",
        {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
    ),
    "qwen3-30b-a3b": (
        "moe",
        {
            **QWEN3,
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "decoder_sparse_step": 1,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "mlp_only_layers": [],
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
}
"""Fields of config.json on the Hugging Face hub that a model depends on, by preset."""
CHANGED_NAMES = {"rope_theta", "rope_scaling", "num_experts", "intermediate_size"}
"""Fields that newer versions of transformers name otherwise, or that are not used."""


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_published_model_is_its_preset(preset: str) -> None:
    name, content = PUBLISHED[preset]
    family = FAMILIES[name]
    config = family.config.model_validate({"name": name, **family.from_hugging_face(content)})
    folder = Path("/models/it")
    weights = SimpleNamespace(family=name, config=config, path=folder, tokenizer_location=folder / "tokenizer.json")
    assert describe(cast(Weights, weights)) == {
        "model": {"name": name, "preset": preset, "from": {"path": "/models/it"}},
        "data": {"tokenizer": "file", "tokenizerFile": "/models/it/tokenizer.json", "vocabSize": content["vocab_size"]},
    }
    written = family.to_hugging_face(config)
    assert family.from_hugging_face(written) == family.from_hugging_face(content)
    for field, value in content.items():
        if field not in CHANGED_NAMES and value is not None and value is not False and value != []:
            assert written.get(field, value) == value, field
    assert written["architectures"] == content["architectures"]
    assert written["model_type"] == content["model_type"]


def test_sizes_of_no_preset_are_written_out() -> None:
    name, content = PUBLISHED["llama3-8b"]
    family = FAMILIES[name]
    sizes = family.from_hugging_face({**content, "num_hidden_layers": 30})
    config = family.config.model_validate({"name": name, **sizes})
    weights = SimpleNamespace(family=name, config=config, path=Path("/it"), tokenizer_location=None)
    model = describe(cast(Weights, weights))["model"]
    assert model["layers"] == 30
    assert "preset" not in model
    assert family.presets["llama3-8b"].keys() <= model.keys()
