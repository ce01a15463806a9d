"""The samples that spoilt a step are named, whatever the layout of the run was, and can be left out."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, TOLERANCE, Layout, pipe
from tests.trainer.pods import Pod, Starter, finish
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard_trainer.data.sampling import Sampler
from trainyard_trainer.replay.explain_step import explain_step

SAMPLES, LENGTH, BATCH, STEP = 10_000, 16, 32, 9
LAYOUTS = [Layout(1, {}), Layout(2, {}), Layout(2, {"data": FSDP}), Layout(2, {"pipeline": pipe(2)})]


class Data(NamedTuple):
    """Token ids of which three samples are garbage, all of them drawn in one step."""

    path: Path
    poisoned: list[int]


class Saved(NamedTuple):
    """A finished run."""

    folder: Path
    pod: Pod


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    ids = np.arange(SAMPLES * LENGTH + 1) % 13
    drawn = Sampler(SAMPLES, 0, BATCH, 1).batch_windows(STEP - 1, 0)
    poisoned = sorted(drawn[[3, 11, 30]].tolist())
    random = np.random.default_rng(0)
    for sample in poisoned:
        # The last token is also the first one of the next sample.
        ids[sample * LENGTH + 1 : (sample + 1) * LENGTH] = random.integers(100, 250, LENGTH - 1)
    path = tmp_path_factory.mktemp("data") / "tokens.bin"
    ids.astype(np.uint16).tofile(path)
    return Data(path, poisoned)


def configure(layout: Layout, data: Path, steps: int = 12, **trainer: Any) -> RunConfig:
    source = {"source": "tokens", "path": str(data), "vocabSize": 256, "sequenceLength": LENGTH}
    settings = {"batch": {"global": BATCH, "micro": 8}, "stop": {"steps": steps}, "logEverySteps": 1, **trainer}
    settings["data"] = source | settings.get("data", {})
    checkpoint = {"everySteps": 4, "keep": 100, "async": False}
    return make_config(layout.processes, layout.parallelism, checkpoint=checkpoint, **settings)


def train(start: Starter, folder: Path, layout: Layout, config: RunConfig) -> Saved:
    pods = start(config, 1, layout.processes, env={constants.ENV_CHECKPOINTS: str(folder)})
    assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
    return Saved(folder, pods[0])


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def saved(
    request: pytest.FixtureRequest, start: Starter, tmp_path_factory: pytest.TempPathFactory, data: Data
) -> Saved:
    layout: Layout = request.param
    return train(start, tmp_path_factory.mktemp("run"), layout, configure(layout, data.path))


def test_three_poisoned_samples_among_ten_thousand_are_named_first(saved: Saved, data: Data) -> None:
    found = explain_step(saved.folder, STEP, top=3)
    assert sorted(figures.sample for figures in found.samples[:3]) == data.poisoned
    assert sorted(found.outliers) == data.poisoned
    assert len(found.samples) == BATCH
    assert found.restored_step == 8
    origin = found.samples[0].origin
    assert origin is not None
    first = found.samples[0].sample * LENGTH
    assert origin.places == (f"{data.path}, tokens {first} to {first + LENGTH - 1}",)
    report = next(r for r in saved.pod.reports if r["step"] == STEP)
    assert found.loss == pytest.approx(report["loss"], rel=TOLERANCE)
    assert found.grad_norm == pytest.approx(report["gradNorm"], rel=TOLERANCE)
    losses = [figures.loss for figures in found.samples]
    assert sum(filter(None, losses)) / BATCH == pytest.approx(report["loss"], rel=TOLERANCE)
