"""The cases of the benchmark, and those that only show that it works."""

from typing import Any

from tests.bench.trainer.cases import Case, Program
from tests.bench.trainer.layouts import FOUR, TWO, Layout

PLAIN = "plain PyTorch loop"
NANO: dict[str, Any] = {"preset": "nano"}
TINY: dict[str, Any] = {"preset": "tiny"}
LAYERS: dict[str, Any] = {"preset": "tiny", "layers": 8}
"""For all layouts: its layers can be dealt to four stages alike."""
_IN_TORCHTITAN = ("FSDP 2", "tensor 2", "pipeline 2, 1F1B", "HSDP 2 x 2")
TITANS = tuple(layout for layout in (*TWO, *FOUR) if layout.name in _IN_TORCHTITAN)
"""Layouts that torchtitan has, too."""
QUICK_MODEL: dict[str, Any] = {"preset": "nano", "dim": 32, "ffnDim": 64}


def whole_suite() -> tuple[Case, ...]:
    """Everything; about 30 minutes on two cores."""
    nano, tiny = (NANO, 128, 16, 10, 31), (TINY, 256, 8, 2, 31)
    return (
        beside_others("nano, 1 process x 2 threads", 1, 2, *nano),
        beside_others("tiny, 1 process x 2 threads", 1, 2, *tiny),
        beside_others("nano, DDP 2 processes x 1 thread", 2, 1, *nano),
        beside_others("tiny, DDP 2 processes x 1 thread", 2, 1, *tiny),
        overhead("nano, cost of metrics", NANO, 128, 16, 10, 11, 9),
        efficiency("nano, DDP 2 processes x 1 thread: efficiency", *nano),
        efficiency("tiny, DDP 2 processes x 1 thread: efficiency", *tiny),
        *(beside_torchtitan(f"tiny of 8 layers, {layout.name}", layout, LAYERS, 256, 8, 1, 25) for layout in TITANS),
        *(in_layout(f"tiny of 8 layers, {layout.name}", layout, LAYERS, 256, 8, 1, 25) for layout in (*TWO, *FOUR)),
    )


def quick_suite() -> tuple[Case, ...]:
    """A few seconds."""
    size = (QUICK_MODEL, 32, 4, 2, 3)
    return (
        beside_others("quick, 1 process x 2 threads", 1, 2, *size),
        overhead("quick, cost of metrics", *size, 2),
        efficiency("quick, DDP 2 processes x 1 thread: efficiency", *size),
        in_layout("quick, FSDP 2", TWO[0], *size),
    )


def beside_others(name: str, processes: int, threads: int, *size: Any) -> Case:
    """The trainer beside a loop written by hand, and beside two well-known frameworks."""
    references = (
        Program(PLAIN, "plain", processes, threads),
        Program("Hugging Face Trainer", "transformers", processes, threads),
        Program("Lightning", "lightning", processes, threads),
    )
    return Case(name, Program("Trainyard", "trainyard", processes, threads), references, *size)


def efficiency(name: str, *size: Any) -> Case:
    """Two processes that exchange gradients beside the same work without exchange.

    Each of the two has one thread and half of the batch. What two that share memory, caches and clock can do at most
    is said by two that compute at the same time and exchange nothing; so that reference shows the price of exchange.
    """
    references = (
        Program("2 processes at once, no exchange", "trainyard", groups=2, batch_share=0.5),
        Program("2 x (1 process x 1 thread alone)", "trainyard", batch_share=0.5),
        Program("1 process x 2 threads", "trainyard", threads=2),
    )
    return Case(name, Program("Trainyard", "trainyard", processes=2), references, *size)


def overhead(name: str, *size: Any) -> Case:
    """What it costs to measure: one thread, which the metrics have to share."""
    return Case(name, Program("Trainyard", "trainyard"), (Program("without metrics", "unmeasured"),), *size)


def beside_torchtitan(name: str, layout: Layout, *size: Any) -> Case:
    """A layout beside the same one of torchtitan."""
    subject = Program("Trainyard", "trainyard", layout.processes, parallelism=layout.parallelism)
    other = Program("torchtitan", "torchtitan", layout.processes, parallelism=layout.parallelism)
    return Case(f"{name}, beside torchtitan", subject, (other,), *size)


def in_layout(name: str, layout: Layout, *size: Any) -> Case:
    """A layout beside a plain loop with DDP on as many processes of one thread."""
    subject = Program(
        "Trainyard",
        "trainyard",
        layout.processes,
        parallelism=layout.parallelism,
        servers=layout.servers,
        checkpointing=layout.checkpointing,
    )
    return Case(name, subject, (Program(f"{PLAIN}, DDP {layout.processes}", "plain", layout.processes),), *size)
