"""Peak FLOP/s of devices, the denominator of the model FLOPs utilization (MFU)."""

import os
import re

import torch

from trainyard.protocol import constants
from trainyard_trainer.runtime.errors import ConfigError

PEAKS = {
    "GB300": 2500e12,
    "B300": 2250e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A30": 165e12,
    "A40": 150e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L20": 119e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX PRO 6000": 504e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI355X": 2516e12,
    "MI350X": 2307e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
    "MI300A": 981e12,
    "MI250X": 191e12,
    "MI210": 181e12,
}
"""Peak FLOP/s in bfloat16 with sums in float32 and without sparsity, by words of the device's name, from the vendors'
data sheets. V100 and T4 have no bfloat16: float16. An MI250X is two devices, of which this is one. The first entry that
matches counts."""


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
    return next((peak for words, peak in PEAKS.items() if re.search(rf"\b{words}\b", name)), None)


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
