"""Peak FLOP/s of devices, the denominator of the model FLOPs utilization (MFU)."""

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
"""Peak FLOP/s in bfloat16 without sparsity, by a part of the device's name, from the vendors' data sheets. The first
entry that matches counts."""


def peak_flops(device: torch.device) -> float | None:
    """Return the peak FLOP/s of the device of one rank; None if it is not known.

    Raises:
        ConfigError: TRAINYARD_PEAK_FLOPS is not a positive, finite number.
    """
    setting = os.environ.get(constants.ENV_PEAK_FLOPS)
    if setting:
        return _parse(setting)
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def _parse(setting: str) -> float:
    try:
        peak = float(setting)
    except ValueError:
        peak = 0.0
    if not 0 < peak < float("inf"):
        raise ConfigError(
            f"{constants.ENV_PEAK_FLOPS}: must be a positive number of FLOP/s, not {setting}; e.g. 312e12"
        )
    return peak
