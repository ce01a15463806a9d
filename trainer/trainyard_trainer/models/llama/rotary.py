"""Rotary positions (Su et al., 2021): the tables of a model, and the frequencies of models for long sequences.

Letters: B samples, H heads, T positions, E width of a head. Pair i of a head is (i, i + E/2), as in the Hugging Face
Llama; it is rotated by position x frequency i.
"""

import math

import torch
from torch import Tensor

from trainyard.models.rope_scaling import RopeScaling


class Rotary:
    """Rotary positions of the inputs of a model, the same for all of its attention layers.

    The tables are no inputs of blocks: fully_shard casts these to bfloat16, in which a cosine has an error of up to
    0.002. They are no buffers either: DistributedDataParallel would broadcast those of rank 0.
    """

    def __init__(self, head_dim: int, theta: float = 10_000.0, scaling: RopeScaling | None = None) -> None:
        self._frequencies, self._magnitude = frequencies(head_dim, theta, scaling)
        self.cos_TE, self.sin_TE = torch.empty(0, device="cpu"), torch.empty(0, device="cpu")

    def set_positions(self, first: int, count: int, device: torch.device) -> None:
        """Make the tables [T, E] of `count` positions, beginning with `first`, in float32."""
        positions = torch.arange(first, first + count, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, self._frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        self.cos_TE = (angles.cos() * self._magnitude).float().to(device)
        self.sin_TE = (angles.sin() * self._magnitude).float().to(device)

    def __call__(self, x_BHTE: Tensor) -> Tensor:
        """Rotate each pair of a head by the angle of its position, computed in float32 for every type of x."""
        positions = x_BHTE.shape[2]
        return rotate(x_BHTE, self.cos_TE[:positions], self.sin_TE[:positions])


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Rotate each pair of a head, given the cosines and sines of its angles in float32; the type of x stays."""
    first, second = x_BHTE.chunk(2, dim=-1)
    rotated = x_BHTE * cos_TE + torch.cat((-second, first), dim=-1) * sin_TE
    return rotated.to(x_BHTE.dtype)


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> tuple[Tensor, float]:
    """Return the frequencies [E/2] in float64, theta^(-2i/E) before scaling, and a factor for cosines and sines."""
    plain = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    if scaling is None:
        return plain, 1.0
    match scaling.type:
        case "linear":
            return plain / scaling.factor, 1.0
        case "llama3":
            return _llama3(plain, scaling), 1.0
        case "yarn":
            return _yarn(plain, theta, scaling), 0.1 * math.log(scaling.factor) + 1.0
        case "none":
            return plain, 1.0


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Return the frequencies of Llama 3.1: of the periods in the original length, few are stretched, many are not."""
    low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
    assert scaling.original_length is not None, "admission demands it"
    periods = scaling.original_length * plain / (2 * math.pi)
    kept = ((periods - low) / (high - low)).clamp(0.0, 1.0)
    return plain * (kept + (1 - kept) / scaling.factor)


def _yarn(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Return the frequencies of YaRN (Peng et al., 2023, section 3.2), with a ramp between whole pairs as published."""
    slow, fast = scaling.beta_slow or 1.0, scaling.beta_fast or 32.0
    assert scaling.original_length is not None, "admission demands it"
    pairs = len(plain)

    def pair_with(periods: float) -> float:
        """Return the number of the pair that has so many periods in the original length, with a fraction."""
        assert scaling.original_length is not None
        return pairs * math.log(scaling.original_length / (periods * 2 * math.pi)) / math.log(theta)

    first, last = max(math.floor(pair_with(fast)), 0), min(math.ceil(pair_with(slow)), 2 * pairs - 1)
    ramp = (torch.arange(pairs, dtype=torch.float64, device="cpu") - first) / max(last - first, 0.001)
    kept = 1 - ramp.clamp(0.0, 1.0)
    return plain * (kept + (1 - kept) / scaling.factor)
