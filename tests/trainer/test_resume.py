"""A run that goes on from a checkpoint is the run that was never interrupted."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.layouts import FSDP, GPT, HSDP, SERVER, Layout, pipe
from tests.trainer.pods import Pod, Starter, finish, make_config
from trainyard import contract
from trainyard_trainer import checkpoints

STEPS = 6
TOLERANCE = 1e-5


def train(
    start: Starter, folder: Path, layout: Layout, *, stop: int = STEPS, entry: str | None = None, **changes: Any
) -> list[Pod]:
    """A run that keeps its checkpoints in a folder, one after step 3."""
    checkpoint = {"everySteps": 3, "async": False, **changes.pop("checkpoint", {})}
    settings = {
        "model": GPT,
        "batch": {"global": 8, "micro": layout.micro},
        "stop": {"steps": stop},
        "optimizer": {"eps": 1e-4},
        "schedule": {"name": "constant"},
        **changes,
    }
    config = make_config(layout.processes, layout.parallelism, checkpoint=checkpoint, **settings)
    entry = entry or "trainyard_trainer.launch:main"
    return start(config, 1, layout.processes, entry, {contract.ENV_CHECKPOINTS: str(folder)})


def losses(pod: Pod) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in pod.reports if "loss" in r}


WRITERS = [
    Layout(1, {}),
    Layout(4, {"data": FSDP}),
    Layout(2, {"tensor": 2, "data": FSDP}),
    Layout(4, {"pipeline": pipe(2, "ZBV"), "data": FSDP}),
    Layout(2, {"data": SERVER}),
]
READERS = [
    Layout(1, {}),
    Layout(2, {}),
    Layout(2, {"tensor": 2}),
    Layout(2, {"pipeline": pipe(2)}),
    Layout(4, {"data": HSDP}),
    Layout(2, {"context": 2}),
    Layout(2, {"data": SERVER}),
]


@pytest.fixture(scope="module")
def undisturbed(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    [pod] = train(start, tmp_path_factory.mktemp("undisturbed"), Layout(1, {}))
    assert finish([pod]) == [0], pod.stderr
    return losses(pod)


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_a_checkpoint_of_any_layout_goes_on_on_any_other(
    start: Starter, tmp_path: Path, undisturbed: dict[int, float], writer: Layout
) -> None:
    pods = train(start, tmp_path / "first", writer, stop=3)
    assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
    assert losses(pods[0]) == pytest.approx({s: undisturbed[s] for s in (1, 2, 3)}, rel=TOLERANCE)
    for number, reader in enumerate(READERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "step-00000003").symlink_to(tmp_path / "first" / "step-00000003")
        pods = train(start, folder, reader)
        assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
        assert losses(pods[0]) == pytest.approx({s: undisturbed[s] for s in (4, 5, 6)}, rel=TOLERANCE), reader
        assert checkpoints.complete_steps(folder) == [6, 3]
