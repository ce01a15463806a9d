"""Runs of a small model on some layout of the ranks, and what they are compared by."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.trainer.pods import ENTRY, Pod, Starter, finish, make_config
from trainyard.config import RunConfig
from trainyard.sizing.pipeline_stages import stage_count, stages_of_rank

TOLERANCE = 1e-5
"""Relative; fp32 sums in another order."""
MUON_TOLERANCE = 1e-3
"""Muon makes its updates orthogonal in bfloat16, whose rounding error is 4e-3."""
HELD_OUT = {"evalFraction": 0.00005}
STEPS = 5


class Layout(NamedTuple):
    """How the ranks are laid out, and how many there are."""

    processes: int
    parallelism: dict[str, Any]
    micro: int | str = "auto"

    def __str__(self) -> str:
        words = [f"{self.processes}p"]
        for key, value in self.parallelism.items():
            inner = "-".join(str(v) for v in value.values()) if isinstance(value, dict) else value
            words.append(str(inner) if key == "data" else f"{key}{inner}")
        return " ".join(words) + (f" micro{self.micro}" if self.micro != "auto" else "")


FSDP = {"mode": "fsdp"}
HSDP = {"mode": "hsdp", "shard": 2}
SERVER = {"mode": "parameterServer"}


def pipe(stages: int, schedule: str = "1F1B") -> dict[str, Any]:
    return {"stages": stages, "schedule": schedule}


transformer = {"layers": 4, "heads": 8, "kvHeads": 4}


def can_evaluate(layout: Layout) -> bool:
    """Admission refuses held-out samples for the one schedule that has no forward pass alone."""
    return bool(layout.parallelism.get("pipeline", {}).get("schedule") != "ZBV")


Reports = list[dict[str, Any]]
"""What rank 0 reports of each step, and last what it found on the held-out samples."""


def configure(layout: Layout, **trainer: Any) -> RunConfig:
    """Five steps of batches of eight; other arguments take the place of fields of spec.trainer."""
    settings = {
        "model": transformer,
        "batch": {"global": 8, "micro": layout.micro},
        "stop": {"steps": STEPS},
        "data": HELD_OUT if can_evaluate(layout) else {},
        "optimizer": {"eps": 1e-4},
        **trainer,
    }
    return make_config(layout.processes, layout.parallelism, **settings)


def finished_pods(start: Starter, layout: Layout, entry: str = ENTRY, **trainer: Any) -> list[Pod]:
    pods = start(configure(layout, **trainer), 1, layout.processes, entry)
    assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
    return pods


def run(start: Starter, layout: Layout, entry: str = ENTRY, **trainer: Any) -> Reports:
    first, *_ = finished_pods(start, layout, entry, **trainer)
    return [*first.reports, *first.evaluations]


class Audit(NamedTuple):
    """All that a run can be compared by."""

    reports: Reports
    samples: list[list[int]]
    """Numbers of the samples of each batch (of the steps, then of the evaluation), in the order of the global batch."""
    parameters: dict[str, torch.Tensor]
    """In the end, whole."""


def audited(start: Starter, layout: Layout, **trainer: Any) -> Audit:
    first, *_ = finished_pods(start, layout, "tests.trainer.faults:audit", **trainer)
    parameters: dict[str, torch.Tensor] = {}
    for path in first.folder.glob("parameters-*.pt"):
        parameters |= torch.load(path)
    samples = samples_of(first.folder, configure(layout, **trainer))
    return Audit([*first.reports, *first.evaluations], samples, parameters)


def samples_of(folder: Path, config: RunConfig) -> list[list[int]]:
    """What the data-parallel ranks have read, put together; all ranks of one must have read the same."""
    mesh, pipeline = config.mesh, config.parallelism.pipeline
    ends = {0, stage_count(pipeline) - 1}
    shares: dict[int, list[list[int]]] = {}
    for rank in range(mesh.size):
        at = mesh.coordinate(rank)
        if not ends.intersection(stages_of_rank(pipeline, at.pipeline)):
            continue  # in the middle of a pipeline nobody needs samples to train
        read = json.loads((folder / f"samples-{rank}.json").read_text())
        assert {(part, parts) for part, parts, _ in read} == {(at.context, mesh.context)}
        numbers = [sample for _, _, numbers in read for sample in numbers]
        size = 8 // mesh.data
        batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        assert shares.setdefault(mesh.data_index(rank), batches) == batches
    return [[n for share in batch for n in share] for batch in zip(*(shares[i] for i in sorted(shares)), strict=True)]


def assert_equal(reports: Reports, reference: Reports, tolerance: float = TOLERANCE) -> None:
    assert [r["step"] for r in reports[:STEPS]] == list(range(1, STEPS + 1))
    for key in ("loss", "gradNorm"):
        ours, theirs = [r[key] for r in reports[:STEPS]], [r[key] for r in reference[:STEPS]]
        assert ours == pytest.approx(theirs, rel=tolerance), key
    assert len(reports) == len(reference)
    for evaluation, expected in zip(reports[STEPS:], reference[STEPS:], strict=True):
        assert evaluation == pytest.approx(expected, rel=tolerance)


def assert_same(found: Audit, reference: Audit) -> None:
    assert_equal(found.reports, reference.reports)
    assert found.samples == reference.samples
    assert found.parameters.keys() == reference.parameters.keys()
    for name, expected in reference.parameters.items():
        error = (found.parameters[name] - expected).norm() / expected.norm()
        assert error < TOLERANCE, name
