"""Logits of small models as transformers 5.24 computes them: `python -m tests.trainer.hugging_face` rewrites the file.

It needs the dependency group `bench` (`uv sync --group bench`). `test_hugging_face.py` compares ours with the file, so
that the tests need no transformers.
"""

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).with_name("hugging_face.json")
TOKENS = torch.arange(48).mul(7).remainder(23)[None]
"""Token ids [1, T]."""
POSITIONS = [0, 1, 9, 47]
"""Positions whose logits the file has."""

PLAIN = {"dim": 24, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 40, "vocabSize": 23, "sequenceLength": 48}
WIDE = {"dim": 24, "heads": 2, "kvHeads": 1, "headDim": 16, "ropeTheta": 1e6, "normEps": 1e-6, "qkNorm": True}
EXPERTS = {"name": "moe", "experts": 5, "expertsPerToken": 2, "balanceLossWeight": 0.0}
LLAMA3 = {"type": "llama3", "factor": 8.0, "originalLength": 16, "lowFreqFactor": 1.0, "highFreqFactor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "originalLength": 16, "betaFast": 8.0, "betaSlow": 1.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"name": "llama", **PLAIN},
    "llama 3.2": {"name": "llama", **PLAIN, "ropeTheta": 5e5, "ropeScaling": LLAMA3, "tiedEmbeddings": True},
    "llama, linear": {"name": "llama", **PLAIN, "ropeScaling": {"type": "linear", "factor": 3.0}},
    "llama, yarn": {"name": "llama", **PLAIN, "headDim": 12, "ropeScaling": YARN},
    "qwen3": {"name": "llama", **PLAIN, **WIDE, "tiedEmbeddings": True},
    "mixtral": {**PLAIN, **EXPERTS, "ropeTheta": 1e6},
    "qwen3-moe": {**PLAIN, **WIDE, **EXPERTS},
}
"""Resolved sizes of each model, as in the configuration of a run."""


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the values of a parameter of a Hugging Face checkpoint, which follow from its name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    spread = torch.randn(shape, generator=generator)
    return spread * 0.3 if len(shape) > 1 else 1 + spread * 0.1


def checkpoint(sizes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config.json of a model, and the parameters of its checkpoint, written down from their descriptions."""
    dim, heads, kv_heads, ffn = sizes["dim"], sizes["heads"], sizes["kvHeads"], sizes["ffnDim"]
    head, norms, experts = sizes.get("headDim", dim // heads), sizes.get("qkNorm", False), sizes.get("experts", 0)
    shapes = {"model.embed_tokens.weight": (sizes["vocabSize"], dim), "model.norm.weight": (dim,)}
    if not sizes.get("tiedEmbeddings"):
        shapes["lm_head.weight"] = (sizes["vocabSize"], dim)
    for layer in range(sizes["layers"]):
        inner = {
            "input_layernorm": (dim,),
            "post_attention_layernorm": (dim,),
            "self_attn.q_proj": (heads * head, dim),
            "self_attn.k_proj": (kv_heads * head, dim),
            "self_attn.v_proj": (kv_heads * head, dim),
            "self_attn.o_proj": (dim, heads * head),
        }
        inner |= {f"self_attn.{name}": (head,) for name in ("q_norm", "k_norm")} if norms else {}
        if experts:
            at, (gate, up, down) = (
                ("mlp", ("gate_proj", "up_proj", "down_proj")) if norms else ("block_sparse_moe", ("w1", "w3", "w2"))
            )
            inner[f"{at}.gate"] = (experts, dim)
            for expert in range(experts):
                own = {gate: (ffn, dim), up: (ffn, dim), down: (dim, ffn)}
                inner |= {f"{at}.experts.{expert}.{name}": shape for name, shape in own.items()}
        else:
            inner |= {"mlp.gate_proj": (ffn, dim), "mlp.up_proj": (ffn, dim), "mlp.down_proj": (dim, ffn)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inner.items()}
    return _config(sizes, head), {name: weight(name, shape) for name, shape in shapes.items()}


def _config(sizes: dict[str, Any], head: int) -> dict[str, Any]:
    scaling, norms, experts = sizes.get("ropeScaling", {}), sizes.get("qkNorm", False), sizes.get("experts", 0)
    names = {
        "type": "rope_type",
        "factor": "factor",
        "originalLength": "original_max_position_embeddings",
        "lowFreqFactor": "low_freq_factor",
        "highFreqFactor": "high_freq_factor",
        "betaFast": "beta_fast",
        "betaSlow": "beta_slow",
    }
    rope = {"rope_type": "default", **{names[key]: value for key, value in scaling.items()}}
    config = {
        "model_type": {(False, False): "llama", (True, False): "qwen3", (False, True): "mixtral"}.get(
            (norms, bool(experts)), "qwen3_moe"
        ),
        "vocab_size": sizes["vocabSize"],
        "hidden_size": sizes["dim"],
        "intermediate_size": sizes["ffnDim"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kvHeads"],
        "head_dim": head,
        "rms_norm_eps": sizes.get("normEps", 1e-5),
        "max_position_embeddings": sizes["sequenceLength"],
        "tie_word_embeddings": sizes.get("tiedEmbeddings", False),
        "rope_parameters": {"rope_theta": sizes.get("ropeTheta", 10_000.0), **rope},
    }
    if experts:
        config |= {"num_local_experts": experts, "num_experts_per_tok": sizes["expertsPerToken"]}
        config |= {"moe_intermediate_size": sizes["ffnDim"], "norm_topk_prob": True} if norms else {}
    return config


def logits(sizes: dict[str, Any]) -> list[list[float]]:
    """Return the logits that transformers computes from a checkpoint on the disk."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config, parameters = checkpoint(sizes)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        save_file(parameters, Path(folder, "model.safetensors"), {"format": "pt"})
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=AutoConfig.from_pretrained(folder),
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    assert not loading["missing_keys"], loading
    assert not loading["unexpected_keys"], loading
    with torch.no_grad():
        found = model.eval()(TOKENS, use_cache=False).logits[0, POSITIONS]
    return [[float(f"{value:.7g}") for value in row] for row in found.tolist()]


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: logits(sizes) for name, sizes in MODELS.items()}, indent=0) + "\n")
