"""Layouts in bfloat16 against one device, and the memory of each against the plan."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.bench.gpu_check.jobs import small
from tests.bench.gpu_check.pods import Machine, finish
from tests.bench.gpu_check.result import Check
from tests.bench.gpu_check.sizes import Sizes
from trainyard.config import RunConfig
from trainyard.sizing.peak_memory import rank_memory
from trainyard.sizing.process_memory import GPU_BYTES

RUN_SECONDS = 240.0
MOE = {"name": "moe", "experts": 4, "expertsPerToken": 2}
FSDP = {"mode": "fsdp"}


class Case(NamedTuple):
    """A layout, or an option, that must not change the losses."""

    name: str
    ranks: int
    parallelism: dict[str, Any]
    trainer: dict[str, Any]


def cases(ranks: int, *, quick: bool) -> list[Case]:
    """Return what `ranks` devices can run; `quick`: one case of each kind."""
    alone = [
        Case("accumulation", 1, {}, {"batch": {"micro": 2}}),
        Case("activationCheckpointing full", 1, {}, {"activationCheckpointing": "full"}),
        Case("activationCheckpointing selective", 1, {}, {"activationCheckpointing": "selective"}),
        Case("compile", 1, {}, {"compile": True}),
        Case("experts, accumulation", 1, {}, {"family": MOE, "batch": {"micro": 2}}),
    ]
    pairs = [
        Case("ddp", ranks, {}, {}),
        Case("fsdp", ranks, {"data": FSDP}, {}),
        Case("fsdp, accumulation", ranks, {"data": FSDP}, {"batch": {"micro": 1}}),
        Case("fsdp, compile", ranks, {"data": FSDP}, {"compile": True}),
        Case("tensor", 2, {"tensor": 2}, {}),
        Case("context", 2, {"context": 2}, {}),
        Case("pipeline", 2, {"pipeline": {"stages": 2}}, {"batch": {"micro": 2}}),
        Case("expert", 2, {"data": FSDP, "expert": 2}, {"family": MOE}),
    ]
    grids = [
        Case("hsdp", ranks, {"data": {"mode": "hsdp", "shard": ranks // 2}}, {}),
        Case("tensor x fsdp", ranks, {"data": FSDP, "tensor": 2}, {}),
        Case("pipeline x fsdp", ranks, {"data": FSDP, "pipeline": {"stages": 2}}, {"batch": {"micro": 2}}),
        Case("tensor x context x fsdp", ranks, {"data": FSDP, "tensor": 2, "context": 2}, {}),
    ]
    if quick:
        return [pairs[1], pairs[4]] if ranks > 1 else alone[:1]
    return alone + (pairs if ranks > 1 else []) + (grids if ranks >= 4 else [])


def check_layouts(machine: Machine, sizes: Sizes, *, quick: bool) -> Iterator[Check]:
    """Compare each case with one device."""
    references: dict[str, list[float]] = {}
    for case in cases(machine.ranks, quick=quick):
        family = case.trainer.get("family", {}).get("name", "llama")
        if family not in references:
            config = small(sizes, 1, family=case.trainer.get("family", {"name": "llama"}))
            references[family] = _losses(machine, f"alone {family}", config)[0]
        yield _compare(machine, sizes, case, references[family])


def configure(sizes: Sizes, case: Case) -> RunConfig:
    """Return the run of a case.

    Raises:
        ValueError: it is not possible with these ranks.
    """
    batch = {"global": sizes.batch, **case.trainer.get("batch", {})}
    return small(sizes, case.ranks, case.parallelism, **{**case.trainer, "batch": batch})


def _compare(machine: Machine, sizes: Sizes, case: Case, expected: list[float]) -> Check:
    name = f"losses: {case.name}, {case.ranks} ranks"
    try:
        config = configure(sizes, case)
    # Three ranks, for example, cannot divide the batch.
    except ValueError as error:
        return Check(name, None, f"not possible here: {error}")
    try:
        losses, memory = _losses(machine, name.partition(": ")[2].replace(",", ""), config)
    except (RuntimeError, TimeoutError) as error:
        return Check(name, passed=False, detail=str(error))
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    figures = {"worst": worst, "losses": losses, **memory_figures(machine, config, memory)}
    detail = f"largest relative difference of {len(losses)} losses: {worst:.1e} (at most {sizes.tolerance:.0e})"
    return Check(name, worst <= sizes.tolerance, detail, figures)


def _losses(machine: Machine, name: str, config: RunConfig) -> tuple[list[float], dict[str, float]]:
    """Return the loss of each step, and the memory that the first pod has shown.

    Raises:
        RuntimeError: the run has failed.
    """
    with machine.run(name, config) as [pod]:
        if (code := finish([pod], RUN_SECONDS)[0]) != 0:
            raise RuntimeError(f"exit code {code}: {pod.word.message if pod.word else pod.stderr[-500:]}")
        return [report["loss"] for report in pod.reports], pod.memory


def memory_figures(machine: Machine, config: RunConfig, memory: dict[str, float]) -> dict[str, float]:
    """Return the predicted and the measured peak of torch's allocator, in bytes; empty without a GPU."""
    if not machine.gpus or "peak" not in memory:
        return {}
    predicted = max(rank_memory(config, place, True).total for place in range(config.mesh.pipeline))
    return {"predictedBytes": predicted, "peakBytes": memory["peak"], "reservedBytes": memory.get("reserved", 0.0)}


def check_memory(checks: list[Check]) -> Check:
    """Return how far the plan is from the measured peaks of all runs that were large enough to say something."""
    found = [
        (check.name, check.figures["peakBytes"] / check.figures["predictedBytes"])
        for check in checks
        if check.figures.get("peakBytes", 0) > GPU_BYTES
    ]
    if not found:
        return Check("memory against plan", None, "no run used as much memory of a GPU as its process needs anyway")
    name, worst = max(found, key=lambda pair: abs(pair[1] - 1))
    detail = f"measured / predicted: {min(r for _, r in found):.2f} to {max(r for _, r in found):.2f}; worst: {name}"
    return Check("memory against plan", 0.85 <= worst <= 1.15, detail, {"ratios": dict(found)})
