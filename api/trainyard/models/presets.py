"""Named shapes of decoders: small ones for tests and studies, and those of published models, from their config.json."""

from collections.abc import Mapping
from typing import Any

Shape = Mapping[str, Any]
"""Fields of spec.trainer.model with their values."""


_SIZES = ("dim", "layers", "heads", "kvHeads", "ffnDim")


def _shape(*sizes: int, **others: Any) -> Shape:
    """Return a shape with the given `_SIZES`, and the oldest values of what `others` leaves out."""
    plain = {"ropeTheta": 10_000.0, "normEps": 1e-5, "tiedEmbeddings": False, "qkNorm": False}
    return {**dict(zip(_SIZES, sizes, strict=True)), **plain, **others}


def _llama3(*sizes: int, stretch: float = 1, tied: bool = False) -> Shape:
    """Return a shape of Llama 3 (Grattafiori et al., 2024), for sequences `stretch` times as long as at first."""
    shape = _shape(*sizes, ropeTheta=500_000.0, tiedEmbeddings=tied)
    scaling = {"type": "llama3", "factor": stretch, "originalLength": 8192, "lowFreqFactor": 1.0, "highFreqFactor": 4.0}
    return {**shape, "ropeScaling": scaling} if stretch > 1 else shape


def _qwen3(*sizes: int, tied: bool = False, **others: Any) -> Shape:
    """Return a shape of Qwen 3 (Yang et al., 2025)."""
    shape = _shape(*sizes, ropeTheta=1_000_000.0, normEps=1e-6, qkNorm=True, tiedEmbeddings=tied)
    return {**shape, "headDim": 128, **others}


LLAMA: Mapping[str, Shape] = {
    "nano": _shape(128, 4, 4, 4, 384),
    "tiny": _shape(256, 6, 8, 4, 768),
    "small": _shape(768, 12, 12, 12, 2048),
    "medium": _shape(1024, 24, 16, 16, 2816),
    "1b": _shape(2048, 16, 32, 8, 8192),
    "8b": _shape(4096, 32, 32, 8, 14336),
    "70b": _shape(8192, 80, 64, 8, 28672),
    "llama3-8b": _llama3(4096, 32, 32, 8, 14336),
    "llama3-70b": _llama3(8192, 80, 64, 8, 28672),
    "llama3.1-8b": _llama3(4096, 32, 32, 8, 14336, stretch=8),
    "llama3.1-70b": _llama3(8192, 80, 64, 8, 28672, stretch=8),
    "llama3.1-405b": _llama3(16384, 126, 128, 8, 53248, stretch=8),
    "llama3.2-1b": _llama3(2048, 16, 32, 8, 8192, stretch=32, tied=True),
    "llama3.2-3b": _llama3(3072, 28, 24, 8, 8192, stretch=32, tied=True),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 8, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 8, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 8, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 8, 12288),
    "qwen3-14b": _qwen3(5120, 40, 40, 8, 17408),
    "qwen3-32b": _qwen3(5120, 64, 64, 8, 25600),
}
"""Presets of the family llama. The first seven are plain shapes of any vocabulary."""


def _mixtral(*sizes: int) -> Shape:
    """Return a shape of Mixtral (Jiang et al., 2024)."""
    return _shape(*sizes, ropeTheta=1_000_000.0, experts=8, expertsPerToken=2)


MOE: Mapping[str, Shape] = {
    "nano": _shape(128, 4, 4, 4, 192, experts=8, expertsPerToken=2),
    "tiny": _shape(256, 6, 8, 4, 384, experts=8, expertsPerToken=2),
    "small": _shape(768, 12, 12, 12, 1024, experts=8, expertsPerToken=2),
    "medium": _shape(1024, 24, 16, 16, 1408, experts=16, expertsPerToken=2),
    "8x7b": _shape(4096, 32, 32, 8, 14336, experts=8, expertsPerToken=2),
    "8x22b": _shape(6144, 56, 48, 8, 16384, experts=8, expertsPerToken=2),
    "mixtral-8x7b": _mixtral(4096, 32, 32, 8, 14336),
    "mixtral-8x22b": _mixtral(6144, 56, 48, 8, 16384),
    "qwen3-30b-a3b": _qwen3(2048, 48, 32, 4, 768, experts=128, expertsPerToken=8),
    "qwen3-235b-a22b": _qwen3(4096, 94, 64, 4, 1536, experts=128, expertsPerToken=8),
}
"""Presets of the family moe. The first six are plain shapes of any vocabulary."""

WITH_HEAD_DIM = sorted({name for family in (LLAMA, MOE) for name, shape in family.items() if "headDim" in shape})
"""Presets whose heads have a width of their own, not dim / heads."""
