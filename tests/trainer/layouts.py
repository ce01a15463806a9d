"""Runs of a small model on some layout of the ranks, and their comparison."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.support.run_config import make_config
from tests.trainer.pods import ENTRY, Pod, Starter, finish
from trainyard.config import RunConfig
from trainyard.resource.parallelism import PipelineParallelism
from trainyard.sizing.pipeline_stages import stage_count, stages_of_rank

TOLERANCE = 1e-5
"""Relative error: float32 sums in another order."""
MUON_TOLERANCE = 1e-3
"""Relative error: Muon makes its updates orthogonal in bfloat16, whose rounding error is 4e-3."""
HELD_OUT = {"evalFraction": 0.00005}
STEPS = 3


class Layout(NamedTuple):
    """Number of ranks and their layout."""

    processes: int
    parallelism: dict[str, Any]
    micro: int | str = "auto"

    @property
    def layers(self) -> int:
        """Two blocks, or as many as the pipeline has stages."""
        return max(2, stage_count(self._pipeline))

    @property
    def evaluates(self) -> bool:
        """Admission refuses held-out samples for the one schedule that has no forward pass alone."""
        return self._pipeline.schedule != "ZBV"

    @property
    def alone(self) -> "Layout":
        """One process with the same model and the same evaluations, to compare with."""
        return Layout(1, {} if self.evaluates else {"pipeline": pipe(1, "ZBV")})

    @property
    def _pipeline(self) -> PipelineParallelism:
        return PipelineParallelism.model_validate(self.parallelism.get("pipeline", {}))

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


LLAMA = {"heads": 8, "kvHeads": 4}
transformer = {"layers": 4, **LLAMA}


def extended(cases: Iterable[Any]) -> list[Any]:
    """Return cases of a parametrized test that others of the test represent: `make test-all` runs these, too."""
    several = [case if isinstance(case, tuple) and not isinstance(case, Layout) else (case,) for case in cases]
    return [pytest.param(*values, marks=pytest.mark.extended) for values in several]


Reports = list[dict[str, Any]]
"""Reports of each step, and the results of the evaluation behind the last one."""


def configure(layout: Layout, **trainer: Any) -> RunConfig:
    """Return a configuration of `STEPS` steps with batches of eight; other arguments replace fields of spec.trainer."""
    settings = {
        "batch": {"global": 8, "micro": layout.micro},
        "stop": {"steps": STEPS},
        "data": HELD_OUT if layout.evaluates else {},
        "optimizer": {"eps": 1e-4},
        **trainer,
        "model": {"layers": layout.layers, **trainer.get("model", LLAMA)},
    }
    return make_config(layout.processes, layout.parallelism, **settings)


def finished_pods(start: Starter, layout: Layout, entry: str = ENTRY, **trainer: Any) -> list[Pod]:
    pods = start(configure(layout, **trainer), 1, layout.processes, entry)
    assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
    return pods


def run(start: Starter, layout: Layout, entry: str = ENTRY, **trainer: Any) -> Reports:
    first, *_ = finished_pods(start, layout, entry, **trainer)
    return [*first.reports, *first.evaluations]


class RunRecord(NamedTuple):
    """Everything of a run that is compared."""

    reports: Reports
    samples: list[list[int]]
    """Indices of the samples of each batch (of the steps, then of the evaluation), in the order of the global batch."""
    parameters: dict[str, torch.Tensor]
    """Parameters after the last step, undivided."""


def record(start: Starter, layout: Layout, **trainer: Any) -> RunRecord:
    first, *_ = finished_pods(start, layout, "tests.trainer.faults:audit", **trainer)
    parameters: dict[str, torch.Tensor] = {}
    for path in first.folder.glob("parameters-*.pt"):
        parameters |= torch.load(path)
    samples = samples_of(first.folder, configure(layout, **trainer))
    return RunRecord([*first.reports, *first.evaluations], samples, parameters)


def samples_of(folder: Path, config: RunConfig) -> list[list[int]]:
    """Return the global batches from what the ranks have read; ranks with the same share must have read the same."""
    mesh, pipeline = config.mesh, config.parallelism.pipeline
    ends = {0, stage_count(pipeline) - 1}
    shares: dict[int, list[list[int]]] = {}
    for rank in range(mesh.size):
        at = mesh.coordinate(rank)
        if not ends.intersection(stages_of_rank(pipeline, at.pipeline)):
            continue  # stages in the middle of a pipeline need no samples to train
        read = json.loads((folder / f"samples-{rank}.json").read_text())
        assert {(part, parts) for part, parts, _ in read} == {(at.context, mesh.context)}
        numbers = [sample for _, _, numbers in read for sample in numbers]
        size = 8 // mesh.data
        batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        assert shares.setdefault(mesh.data_index(rank), batches) == batches
    return [[n for share in batch for n in share] for batch in zip(*(shares[i] for i in sorted(shares)), strict=True)]


class References:
    """Runs on one process, each made once: by the layout, and by a name for the other settings."""

    def __init__(self, start: Starter) -> None:
        self._start = start
        self._records: dict[tuple[str, int, str], RunRecord] = {}

    def __call__(self, layout: Layout, name: str = "", **trainer: Any) -> RunRecord:
        """Return the run on one process that a run with this layout and these settings must equal."""
        key = (name, layout.layers, str(layout.alone))
        if key not in self._records:
            model = {**trainer.pop("model", LLAMA), "layers": layout.layers}
            self._records[key] = record(self._start, layout.alone, model=model, **trainer)
        return self._records[key]


def assert_equal(reports: Reports, reference: Reports, tolerance: float = TOLERANCE) -> None:
    assert [r["step"] for r in reports[:STEPS]] == list(range(1, STEPS + 1))
    for key in ("loss", "gradNorm"):
        found, expected = [r[key] for r in reports[:STEPS]], [r[key] for r in reference[:STEPS]]
        assert found == pytest.approx(expected, rel=tolerance), key
    assert len(reports) == len(reference)
    for evaluation, reference_evaluation in zip(reports[STEPS:], reference[STEPS:], strict=True):
        assert evaluation.keys() == reference_evaluation.keys()
        # Accuracy counts tokens: a rounding error larger than that of float32 decides ties, and so may count one more.
        compared = evaluation.keys() - ({"accuracy"} if tolerance > TOLERANCE else set())
        for key in compared:
            assert evaluation[key] == pytest.approx(reference_evaluation[key], rel=tolerance), key


def assert_same(found: RunRecord, reference: RunRecord) -> None:
    assert_equal(found.reports, reference.reports)
    assert found.samples == reference.samples
    assert found.parameters.keys() == reference.parameters.keys()
    for name, expected in reference.parameters.items():
        error = (found.parameters[name] - expected).norm() / expected.norm()
        assert error < TOLERANCE, name
