"""A run that goes on from a checkpoint is the run that was never interrupted."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainer.layouts import FSDP, HSDP, SERVER, Layout, pipe, transformer
from tests.trainer.pods import Pod, Starter, finish, make_config, wait_until
from trainyard.protocol import constants
from trainyard_trainer.checkpoint import catalog

STEPS = 6
TOLERANCE = 1e-5


def train(
    start: Starter, folder: Path, layout: Layout, *, stop: int = STEPS, entry: str | None = None, **changes: Any
) -> list[Pod]:
    """A run that keeps its checkpoints in a folder, one after step 3."""
    checkpoint = {"everySteps": 3, "async": False, **changes.pop("checkpoint", {})}
    settings = {
        "model": transformer,
        "batch": {"global": 8, "micro": layout.micro},
        "stop": {"steps": stop},
        "optimizer": {"eps": 1e-4},
        "schedule": {"name": "constant"},
        **changes,
    }
    config = make_config(layout.processes, layout.parallelism, checkpoint=checkpoint, **settings)
    entry = entry or "trainyard_trainer.launcher.main:main"
    return start(config, 1, layout.processes, entry, {constants.ENV_CHECKPOINTS: str(folder)})


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
        assert catalog.complete_steps(folder) == [6, 3]


def test_a_run_saves_in_the_background_and_keeps_as_many_as_it_should(start: Starter, tmp_path: Path) -> None:
    pods = train(start, tmp_path, Layout(2, {}), stop=12, checkpoint={"everySteps": 3, "async": True, "keep": 2})
    assert finish(pods, 120) == [0], pods[0].stderr
    assert catalog.complete_steps(tmp_path) == [12, 9]
    assert all(catalog.find_damage(catalog.complete_folder(tmp_path, step)) is None for step in (12, 9))
    assert pods[0].word is not None
    assert pods[0].word.progress is not None
    assert pods[0].word.progress.checkpoint_step == 12


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("layout", [Layout(1, {}), Layout(2, {"data": FSDP}), Layout(2, {"data": SERVER})], ids=str)
def test_a_run_that_is_told_to_stop_saves_first_and_goes_on_at_the_next_step(
    start: Starter, tmp_path: Path, undisturbed: dict[int, float], layout: Layout, background: bool
) -> None:
    """Only one pod is told; all end, after the same step."""
    checkpoint = {"everySteps": 1000, "async": background}
    pods = train(start, tmp_path, layout, stop=100_000, checkpoint=checkpoint)
    pods[0].wait_for_step(4)
    os.kill(pods[0].pid, signal.SIGTERM)
    codes = finish(pods[:1], 60)
    assert codes == [128 + signal.SIGTERM], pods[0].stderr
    [step] = catalog.complete_steps(tmp_path)
    assert step >= 4
    seen = losses(pods[0])
    assert max(seen) == step
    assert {s: seen[s] for s in (1, 2, 3)} == pytest.approx({s: undisturbed[s] for s in (1, 2, 3)}, rel=TOLERANCE)
    pods = train(start, tmp_path, layout, stop=step + 2, checkpoint=checkpoint)
    assert set(finish(pods, 60)) == {0}, pods[0].stderr
    assert sorted(losses(pods[0])) == [step + 1, step + 2]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    start: Starter, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    pods = train(start, tmp_path, Layout(2, {"data": FSDP}))
    assert finish(pods, 60) == [0], pods[0].stderr
    with (tmp_path / "step-00000006" / "__1_0.distcp").open("r+b") as file:
        file.truncate(100)
    pods = train(start, tmp_path, Layout(2, {}))
    assert finish(pods, 60) == [0], pods[0].stderr
    assert losses(pods[0]) == pytest.approx({s: undisturbed[s] for s in (4, 5, 6)}, rel=TOLERANCE)
    assert "the checkpoint of step 6 is damaged" in pods[0].stdout
    assert final(pods[0]) == (6, 3, 1, None)
    assert catalog.find_damage(tmp_path / "step-00000006") is None


def final(pod: Pod) -> tuple[int | None, int | None, int | None, int | None]:
    """What the last word says of checkpoints: the newest, the one taken up, and how many were damaged or failed."""
    assert pod.word is not None
    assert pod.word.progress is not None
    figures = pod.word.progress
    return figures.checkpoint_step, figures.resumed_step, figures.checkpoints_damaged, figures.checkpoint_failures


def test_a_checkpoint_of_another_model_or_optimizer_is_refused_by_name(start: Starter, tmp_path: Path) -> None:
    pods = train(start, tmp_path, Layout(1, {}), stop=3)
    assert finish(pods, 60) == [0], pods[0].stderr
    for changes, message in (
        ({"model": {**transformer, "layers": 2}}, "spec.trainer.model: layers is 2, but the checkpoint"),
        ({"optimizer": {"name": "sgd"}}, "spec.trainer.optimizer.name: is sgd, but the checkpoint"),
    ):
        [pod] = train(start, tmp_path, Layout(1, {}), **changes)
        assert finish([pod], 60) == [constants.EXIT_INVALID_CONFIG]
        assert pod.word is not None
        assert pod.word.message.startswith(message)


def test_the_samples_go_on_where_they_were_if_the_batch_changes(start: Starter, tmp_path: Path) -> None:
    """Eight samples a step, then four: none is repeated and none is left out."""
    entry = "tests.trainer.faults:audit"
    pods = train(start, tmp_path, Layout(1, {}), stop=3, entry=entry)
    assert finish(pods, 60) == [0], pods[0].stderr
    drawn = read_samples(pods[0])
    pods = train(start, tmp_path, Layout(1, {}), stop=9, entry=entry, batch={"global": 4})
    assert finish(pods, 60) == [0], pods[0].stderr
    drawn += read_samples(pods[0])
    pods = train(start, tmp_path / "whole", Layout(1, {}), entry=entry)
    assert finish(pods, 60) == [0], pods[0].stderr
    assert drawn == read_samples(pods[0])
    assert len(set(drawn)) == 48


def read_samples(pod: Pod) -> list[int]:
    read = json.loads((pod.folder / "samples-0.json").read_text())
    return [sample for _, _, numbers in read for sample in numbers]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(start: Starter, tmp_path: Path) -> None:
    pods = train(start, tmp_path, Layout(2, {"data": FSDP}), entry="tests.trainer.faults:disk_full_at_step_3")
    assert finish(pods, 60) == [0], pods[0].stderr
    assert "the checkpoint of step 3 could not be written: OSError: [Errno 28]" in pods[0].stdout
    assert catalog.complete_steps(tmp_path) == [6]
    assert final(pods[0]) == (6, None, None, 1)
    assert not list(tmp_path.glob("*.partial"))


def test_the_death_of_the_process_that_saves_ends_the_run(start: Starter, tmp_path: Path) -> None:
    """Rather than train on, with nothing saved any more, until somebody looks."""
    (pod,) = train(start, tmp_path, Layout(1, {}), stop=1_000_000, checkpoint={"everySteps": 20, "async": True})
    pod.wait_for_step(20)
    (rank,) = pod.ranks()

    def saving() -> list[psutil.Process]:
        return [p for p in psutil.Process(rank).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]

    wait_until(lambda: bool(saving()) and bool(catalog.complete_steps(tmp_path)), 60, lambda: pod.stderr)
    for process in saving():
        process.kill()
    assert pod.wait(60) == 1
    assert pod.word is not None
    assert pod.word.message.startswith("the process that writes checkpoints has failed: ")
    assert not pod.word.peer_lost
