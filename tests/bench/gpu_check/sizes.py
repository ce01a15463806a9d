"""How large the runs of the check are: on GPUs, and on the processors of a machine without one."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model whose speed is measured."""

    name: str
    model: dict[str, Any]
    vocabulary: int
    sequence_length: int
    batch_per_rank: int
    """Samples of one rank in a step."""
    micro: int
    """Samples of one forward pass."""
    steps: int
    log_every: int
    """Steps of one report; the first report is not counted, since it has the compilation in it."""
    compile: bool = True


@dataclass(frozen=True)
class Sizes:
    """The runs of one check."""

    model: dict[str, Any]
    """Model of the runs that are compared with each other."""
    sequence_length: int
    batch: int
    steps: int
    shapes: tuple[Shape, ...]
    torn_mib: int
    """Size of the tensor of the torn-state test, in MiB."""
    hang_seconds: int
    """spec.health.hangTimeoutSeconds of the runs that hang."""
    tolerance: float = 1e-2
    """Relative difference of losses in bfloat16, whose rounding error is 4e-3."""


ON_GPUS = Sizes(
    model={"dim": 1024, "layers": 4, "heads": 16, "kvHeads": 8, "ffnDim": 2816},
    sequence_length=512,
    batch=32,
    steps=10,
    shapes=(
        Shape("1B", {"preset": "1b"}, 128_256, 4096, 8, 2, steps=40, log_every=10),
        # As many layers as one GPU holds; MFU hardly depends on their number.
        Shape("8B", {"preset": "8b"}, 128_256, 8192, 2, 1, steps=20, log_every=5),
    ),
    torn_mib=512,
    hang_seconds=10,
)
ON_CPUS = Sizes(
    model={"dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64},
    sequence_length=16,
    batch=8,
    steps=4,
    shapes=(
        Shape(
            "tiny",
            {"preset": "nano", "dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64},
            256, 16, 4, 2, steps=40, log_every=10, compile=False,
        ),
    ),
    torn_mib=4,
    hang_seconds=2,
)  # fmt: skip
