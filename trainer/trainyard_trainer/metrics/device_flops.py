"""What a device can compute at most, to measure against."""

import os

import torch

from trainyard.protocol import constants
from trainyard_trainer.runtime.errors import ConfigError

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}
"""Floating-point operations per second in bfloat16, dense, by a part of the device's name; from the makers' data
sheets. The first one that fits counts."""


def peak_flops(device: torch.device) -> float | None:
    """Floating-point operations per second of the device of one rank; None where nobody knows.

    Raises:
        ConfigError: TRAINYARD_PEAK_FLOPS is no positive number.
    """
    given = os.environ.get(constants.ENV_PEAK_FLOPS)
    if given:
        return _number(given)
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def _number(given: str) -> float:
    try:
        peak = float(given)
    except ValueError:
        peak = 0.0
    if not 0 < peak < float("inf"):
        raise ConfigError(f"{constants.ENV_PEAK_FLOPS}: must be a positive number of FLOP/s, not {given}; e.g. 312e12")
    return peak
