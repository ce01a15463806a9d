"""The layouts of ranks that are measured, by name."""

from typing import Any, NamedTuple


class Layout(NamedTuple):
    """How a model is spread over processes."""

    name: str
    processes: int
    parallelism: dict[str, Any]
    checkpointing: str = "none"

    @property
    def servers(self) -> int:
        """Parameter servers besides."""
        return int(self.parallelism.get("data", {}).get("mode") == "parameterServer")


def _pipeline(schedule: str, **rest: Any) -> dict[str, Any]:
    return {"pipeline": {"stages": 2, "schedule": schedule}, **rest}


ONE = Layout("1 process", 1, {})
FSDP = {"mode": "fsdp"}
DDP = Layout("DDP 2", 2, {})

TWO = (
    Layout("FSDP 2", 2, {"data": FSDP}),
    Layout("parameter server, 2 workers", 2, {"data": {"mode": "parameterServer"}}),
    Layout("tensor 2", 2, {"tensor": 2}),
    Layout("context 2", 2, {"context": 2}),
    Layout("pipeline 2, GPipe", 2, _pipeline("GPipe")),
    Layout("pipeline 2, 1F1B", 2, _pipeline("1F1B")),
    Layout("pipeline 2, Interleaved1F1B", 2, _pipeline("Interleaved1F1B")),
    Layout("pipeline 2, ZBV", 2, _pipeline("ZBV")),
    Layout("DDP 2, selective checkpointing", 2, {}, "selective"),
    Layout("DDP 2, full checkpointing", 2, {}, "full"),
)
# HSDP is FSDP with two processes, and DDP: it takes four to be itself.
FOUR = (
    Layout("DDP 4", 4, {}),
    Layout("FSDP 4", 4, {"data": FSDP}),
    Layout("HSDP 2 x 2", 4, {"data": {"mode": "hsdp", "shard": 2}}),
    Layout("tensor 2 x FSDP 2", 4, {"tensor": 2, "data": FSDP}),
    Layout("context 2 x FSDP 2", 4, {"context": 2, "data": FSDP}),
    Layout("pipeline 2, 1F1B x FSDP 2", 4, _pipeline("1F1B", data=FSDP)),
)


def reference_of(layout: Layout) -> Layout:
    """What the memory of a layout is compared with: DDP on as many processes, and DDP with one process."""
    if not layout.parallelism and layout.checkpointing == "none":
        return ONE
    return DDP if layout.processes == DDP.processes else FOUR[0]
