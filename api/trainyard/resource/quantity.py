"""Kubernetes quantities: their pattern, and parsing and formatting of those of memory."""

import re

PATTERN = r"^\+?([0-9]+\.?[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
"""Regular expression of a quantity that is not negative (resource.Quantity of Kubernetes)."""
_QUANTITY = re.compile(r"^\+?(\d+\.?\d*|\.\d+)(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d+))?$")
_BINARY = {unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
_DECIMAL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def parse_bytes(quantity: str | int) -> int:
    """Return the number of bytes of a quantity such as 2Gi, 500M, 1e9 or 1024 (resource.Quantity of Kubernetes).

    Raises:
        ValueError: the text is not a quantity, or too large for a number.
    """
    match = _QUANTITY.match(str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is not a quantity of memory; write it like 2Gi")
    number, binary, decimal, exponent = match.groups()
    try:
        scale = _BINARY.get(binary, 1) * _DECIMAL.get(decimal, 1) * 10.0 ** int(exponent or 0)
        return int(float(number) * scale)
    except OverflowError:
        raise ValueError(f"{quantity!r} is too large for a quantity of memory; write it like 2Gi") from None


def format_bytes(size: float) -> str:
    """Return a number of bytes with three digits and a binary unit of Kubernetes, for example 1.25Gi."""
    unit = ""
    for larger in _BINARY:
        if abs(size) < 999.5:
            break
        size /= 1024
        unit = larger
    digits = 0 if not unit or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f}{unit}"
