"""A run that resumes from a checkpoint equals a run that was never interrupted."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, HSDP, SERVER, Layout, extended, pipe, transformer
from tests.trainer.pods import Pod, Starter, finish, wait_until
from trainyard.protocol import constants
from trainyard.resource.health import BadStepPolicy
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import FORMAT, MANIFEST, Manifest
from trainyard_trainer.checkpoint.writable import writable_root
from trainyard_trainer.record.statement import RECORD_FILE
from trainyard_trainer.runtime.errors import ConfigError

FAULTS = "tests.trainer.faults"
STEPS = 6
LONGER = 12
"""Steps of the undisturbed run: more than a run that is told to stop before its sixth step, and two more."""
TOLERANCE = 1e-5
"""Relative; fp32 sums in another order."""


def train(
    start: Starter, folder: Path, layout: Layout, *, stop: int = STEPS, entry: str | None = None, **changes: Any
) -> list[Pod]:
    """Start a run that keeps its checkpoints in a folder, by default one after each third step.

    `grace`: seconds of the pods' grace period. `stop_by`: spec.trainer.stop in place of steps. `spike`:
    spec.health.badSteps.spikeFactor.
    """
    grace = {constants.ENV_GRACE: str(seconds)} if (seconds := changes.pop("grace", None)) else {}
    checkpoint = {"everySteps": 3, "async": False, **changes.pop("checkpoint", {})}
    checkpoint = {name: value for name, value in checkpoint.items() if value is not None}
    settings = {
        "model": transformer,
        "batch": {"global": 8, "micro": layout.micro},
        "stop": {"steps": stop},
        "optimizer": {"eps": 1e-4},
        "schedule": {"name": "constant"},
        **changes,
    }
    if "stop_by" in settings:
        settings["stop"] = {"steps": None, **settings.pop("stop_by")}
    spike = settings.pop("spike", None)
    config = make_config(layout.processes, layout.parallelism, checkpoint=checkpoint, **settings)
    if spike is not None:
        config = config.replace(health=config.health.replace(bad_steps=BadStepPolicy(spike_factor=spike)))
    entry = entry or "trainyard_trainer.launcher.main:main"
    return start(config, 1, layout.processes, entry, {constants.ENV_CHECKPOINTS: str(folder), **grace})


def losses(pod: Pod) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in pod.reports if "loss" in r}


WRITERS = [
    Layout(2, {"tensor": 2, "data": FSDP}),
    Layout(2, {"data": SERVER}),
    *extended([Layout(1, {}), Layout(4, {"data": FSDP}), Layout(4, {"pipeline": pipe(2, "ZBV"), "data": FSDP})]),
]
READERS = [
    Layout(2, {"tensor": 2}),
    Layout(4, {"data": HSDP}),
    *extended(
        [Layout(2, {}), Layout(2, {"pipeline": pipe(2)}), Layout(2, {"context": 2}), Layout(2, {"data": SERVER})]
    ),
]
ALONE = Layout(1, {})


@pytest.fixture(scope="module")
def undisturbed(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of a run that was never interrupted, by step."""
    [pod] = train(start, tmp_path_factory.mktemp("undisturbed"), ALONE, stop=LONGER)
    assert finish([pod]) == [0], pod.stderr
    return losses(pod)


@pytest.fixture(scope="module")
def pipeline_checkpoint(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of step 3 of a pipeline with sharded parameters: many files, each with parts of tensors."""
    folder = tmp_path_factory.mktemp("pipeline")
    pods = train(start, folder, Layout(4, {"pipeline": pipe(2, "ZBV"), "data": FSDP}), stop=3)
    assert finish(pods, 120) == [0], pods[0].stderr
    return folder / "step-00000003"


def assert_resumes(
    start: Starter, folder: Path, source: Path, layout: Layout, expected: dict[int, float], **changes: Any
) -> None:
    """Resume from a checkpoint of step 3 in a folder of its own, and compare the losses of the steps that follow."""
    folder.mkdir(exist_ok=True)
    (folder / source.name).symlink_to(source)
    pods = train(start, folder, layout, **changes)
    assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
    assert losses(pods[0]) == pytest.approx({s: expected[s] for s in (4, 5, 6)}, rel=TOLERANCE)
    assert catalog.complete_steps(folder) == [6, 3]


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_one_process_resumes_from_a_checkpoint_of_any_layout(
    start: Starter, tmp_path: Path, undisturbed: dict[int, float], writer: Layout
) -> None:
    pods = train(start, tmp_path / "first", writer, stop=3)
    assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
    assert losses(pods[0]) == pytest.approx({s: undisturbed[s] for s in (1, 2, 3)}, rel=TOLERANCE)
    assert_resumes(start, tmp_path / "second", tmp_path / "first" / "step-00000003", ALONE, undisturbed)


@pytest.mark.parametrize("reader", READERS, ids=str)
def test_any_layout_resumes_from_the_checkpoint_of_another(
    start: Starter, tmp_path: Path, undisturbed: dict[int, float], pipeline_checkpoint: Path, reader: Layout
) -> None:
    """The format does not know layouts, so one writer stands for all; one process as a reader is tested above."""
    assert_resumes(start, tmp_path, pipeline_checkpoint, reader, undisturbed)


FAMILIES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": {"name": "adamw", "eps": 1e-4}},
    "sgd with momentum": {"optimizer": {"name": "sgd", "momentum": 0.9}},
    "adagrad": {"optimizer": {"name": "adagrad"}},
    "rmsprop": {"optimizer": {"name": "rmsprop", "momentum": 0.5}},
    "muon": {"optimizer": {"name": "muon"}},
    "mixture of experts": {
        "model": {"name": "moe", "experts": 4, "expertsPerToken": 2},
        "optimizer": {"name": "adam"},
        "schedule": {"name": "cosine", "warmupSteps": 2},
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_resumes_exactly_from_a_checkpoint_written_in_the_background(
    start: Starter, tmp_path: Path, family: str
) -> None:
    """All state of each optimizer, router and schedule is in the checkpoint; the same layout gives the same losses."""
    changes = {"model": {}, **FAMILIES[family], "checkpoint": {"async": True, "keep": 5}}
    [pod] = train(start, tmp_path / "first", ALONE, **changes)
    assert finish([pod]) == [0], pod.stderr
    assert_resumes(start, tmp_path / "second", tmp_path / "first" / "step-00000003", ALONE, losses(pod), **changes)


def test_the_optimizer_waits_until_a_background_checkpoint_has_been_copied(start: Starter, tmp_path: Path) -> None:
    """Otherwise parts of the next step are in the checkpoint; a slow copy makes that certain."""
    background = {"async": True, "keep": 5}
    entry = f"{FAULTS}:copy_slowly"
    [pod] = train(start, tmp_path / "first", ALONE, entry=entry, checkpoint=background)
    assert finish([pod]) == [0], pod.stderr
    assert_resumes(start, tmp_path / "second", tmp_path / "first" / "step-00000003", ALONE, losses(pod))


def test_the_checksums_of_a_checkpoint_cover_all_its_files(tmp_path: Path, pipeline_checkpoint: Path) -> None:
    folder = tmp_path / pipeline_checkpoint.name
    shutil.copytree(pipeline_checkpoint, folder)
    names = {path.name for path in folder.iterdir()} - {MANIFEST, RECORD_FILE}
    assert names == set(Manifest.read(folder).files)
    assert ".metadata" in names
    assert len(names) > 4
    assert catalog.find_damage(folder) is None
    for name in sorted(names):
        content = (folder / name).read_bytes()
        middle = len(content) // 2
        (folder / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert catalog.find_damage(folder) == f"{folder / name} has a wrong checksum"
        (folder / name).write_bytes(content)
    assert catalog.find_damage(folder) is None


def test_a_run_saves_every_so_many_seconds(start: Starter, tmp_path: Path) -> None:
    """The clock of rank 0 decides, and all ranks save after the same step."""
    checkpoint = {"everySteps": None, "everySeconds": 1, "keep": 100}
    (pod,) = train(start, tmp_path, Layout(2, {"data": FSDP}), stop=1_000_000, checkpoint=checkpoint)
    wait_until(lambda: len(catalog.complete_steps(tmp_path)) >= 3, 60, lambda: pod.stderr)
    os.kill(pod.pid, signal.SIGTERM)
    assert finish([pod]) == [128 + signal.SIGTERM], pod.stderr
    _last, *periodic = catalog.complete_steps(tmp_path)
    times = [(catalog.complete_folder(tmp_path, step) / MANIFEST).stat().st_mtime for step in reversed(periodic)]
    assert all(later - earlier > 0.5 for earlier, later in itertools.pairwise(times))


def test_a_run_saves_in_the_background_and_keeps_as_many_as_it_should(start: Starter, tmp_path: Path) -> None:
    pods = train(start, tmp_path, Layout(2, {}), stop=12, checkpoint={"everySteps": 3, "async": True, "keep": 2})
    assert finish(pods, 120) == [0], pods[0].stderr
    assert catalog.complete_steps(tmp_path) == [12, 9]
    assert all(catalog.find_damage(catalog.complete_folder(tmp_path, step)) is None for step in (12, 9))
    assert pods[0].word is not None
    assert pods[0].word.progress is not None
    assert pods[0].word.progress.checkpoint_step == 12


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    "layout", [Layout(2, {"data": FSDP}), *extended([Layout(1, {}), Layout(2, {"data": SERVER})])], ids=str
)
def test_a_run_that_is_told_to_stop_saves_first_and_resumes_at_the_next_step(
    start: Starter, tmp_path: Path, undisturbed: dict[int, float], layout: Layout, background: bool
) -> None:
    """One pod receives the signal; all ranks stop after the same step. Losses equal those of an undisturbed run."""
    checkpoint = {"everySteps": 1000, "async": background}
    pods = train(start, tmp_path, layout, entry=f"{FAULTS}:wait_in_rank_0", stop=100_000, checkpoint=checkpoint)
    pods[0].wait_for_step(5)
    os.kill(pods[0].pid, signal.SIGTERM)
    (pods[0].folder / "go").touch()
    codes = finish(pods[:1], 60)
    assert codes == [128 + signal.SIGTERM], pods[0].stderr
    [step] = catalog.complete_steps(tmp_path)
    before = losses(pods[0])
    assert sorted(before) == list(range(1, step + 1))
    pods = train(start, tmp_path, layout, stop=step + 2, checkpoint=checkpoint)
    assert set(finish(pods, 60)) == {0}, pods[0].stderr
    after = losses(pods[0])
    assert sorted(after) == [step + 1, step + 2]
    assert before | after == pytest.approx({s: undisturbed[s] for s in before | after}, rel=TOLERANCE)


def test_a_damaged_checkpoint_is_passed_over_for_the_previous_one(
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
    """Checkpoints in the termination message: the newest, the one resumed from, and how many were damaged or failed."""
    assert pod.word is not None
    assert pod.word.progress is not None
    figures = pod.word.progress
    return figures.checkpoint_step, figures.resumed_step, figures.checkpoints_damaged, figures.checkpoint_failures


def test_a_checkpoint_of_another_model_or_optimizer_is_refused_by_name(start: Starter, tmp_path: Path) -> None:
    pods = train(start, tmp_path, Layout(1, {}), stop=3)
    assert finish(pods, 60) == [0], pods[0].stderr
    for changes, message in (
        ({"model": {**transformer, "layers": 2}}, "spec.trainer.model.layers is 2, but 4 in the run of"),
        ({"optimizer": {"name": "sgd"}}, "spec.trainer.optimizer.name is sgd, but adamw in the run of"),
    ):
        [pod] = train(start, tmp_path, Layout(1, {}), **changes)
        assert finish([pod], 60) == [constants.EXIT_INVALID_CONFIG]
        assert pod.word is not None
        assert pod.word.message.startswith(message)


def test_a_checkpoint_of_a_newer_trainer_is_refused_by_all_ranks(start: Starter, tmp_path: Path) -> None:
    """And not taken for damaged, which would begin the run again."""
    pods = train(start, tmp_path, ALONE, stop=3)
    assert finish(pods) == [0], pods[0].stderr
    path = tmp_path / "step-00000003" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": FORMAT + 1}))
    pods = train(start, tmp_path, Layout(2, {}))
    assert finish(pods) == [constants.EXIT_INVALID_CONFIG]
    assert pods[0].word is not None
    assert f"has the format {FORMAT + 1}, but this version of the trainer reads" in pods[0].word.message
    assert "Traceback" not in pods[0].stderr


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.9), (0.9, 0.0)])
@pytest.mark.parametrize("name", ["sgd", *extended(["rmsprop"])])
def test_momentum_may_be_turned_on_and_off_when_a_run_resumes(
    start: Starter, tmp_path: Path, name: str, before: float, after: float
) -> None:
    """The checkpoint has no state for a momentum that the run did not have."""
    for stop, momentum in ((3, before), (5, after)):
        optimizer = {"name": name, "momentum": momentum, "eps": None, "learningRate": 0.001}
        [pod] = train(start, tmp_path, ALONE, stop=stop, optimizer=optimizer)
        assert finish([pod], 60) == [0], pod.stderr
    assert sorted(losses(pod)) == [4, 5]


def test_samples_continue_where_they_were_if_the_batch_changes(start: Starter, tmp_path: Path) -> None:
    """Eight samples per step, then four: none is repeated or skipped."""
    entry = "tests.trainer.faults:audit"
    pods = train(start, tmp_path, Layout(1, {}), stop=3, entry=entry)
    assert finish(pods, 60) == [0], pods[0].stderr
    consumed = read_samples(pods[0])
    pods = train(start, tmp_path, Layout(1, {}), stop=9, entry=entry, batch={"global": 4})
    assert finish(pods, 60) == [0], pods[0].stderr
    consumed += read_samples(pods[0])
    pods = train(start, tmp_path / "undisturbed", Layout(1, {}), entry=entry)
    assert finish(pods, 60) == [0], pods[0].stderr
    assert consumed == read_samples(pods[0])
    assert len(set(consumed)) == 48


def test_tokens_and_epochs_count_what_was_consumed_before_the_batch_changed(start: Starter, tmp_path: Path) -> None:
    """Three steps of 8 samples of 16 tokens, then steps of 16: the run ends with the tokens that it is to have."""
    [pod] = train(start, tmp_path, ALONE, stop=3)
    assert finish([pod], 60) == [0], pod.stderr
    [pod] = train(start, tmp_path, ALONE, batch={"global": 16}, stop_by={"tokens": 1024})
    assert finish([pod], 60) == [0], pod.stderr
    assert sorted(losses(pod)) == [4, 5, 6], "384 tokens are consumed, and 640 remain: 2.5 steps"
    assert Manifest.read(tmp_path / "step-00000006").tokens == 384 + 3 * 256
    [pod] = train(start, tmp_path, ALONE, batch={"global": 2}, stop_by={"tokens": 1024})
    assert finish([pod], 60) == [0], pod.stderr
    assert losses(pod) == {}
    assert "nothing is left to do: spec.trainer.stop was reached before" in pod.stdout


def test_a_longer_sequence_continues_at_the_same_token(start: Starter, tmp_path: Path) -> None:
    """24 samples of 16 tokens are 9.6 of 40: the run continues with sample 10 of the windows of 40 tokens."""
    entry = "tests.trainer.faults:audit"
    [pod] = train(start, tmp_path / "run", ALONE, stop=3)
    assert finish([pod], 60) == [0], pod.stderr
    [pod] = train(start, tmp_path / "run", ALONE, data={"sequenceLength": 40}, stop_by={"tokens": 1024}, entry=entry)
    assert finish([pod], 60) == [0], pod.stderr
    assert sorted(losses(pod)) == [4, 5], "640 tokens remain: two steps of 320"
    [reference] = train(start, tmp_path / "other", ALONE, data={"sequenceLength": 40}, stop=4, entry=entry)
    assert finish([reference], 60) == [0], reference.stderr
    assert read_samples(pod) == read_samples(reference)[10:26]
    assert Manifest.read(tmp_path / "run" / "step-00000005").tokens == 1024


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


def test_ranks_wait_for_the_slow_storage_of_one_of_them(start: Starter, tmp_path: Path) -> None:
    """Longer than a collective of the training may take, which would look like a lost peer."""
    (pod,) = train(start, tmp_path, Layout(2, {"data": FSDP}), entry=f"{FAULTS}:slow_disk_of_rank_1")
    assert finish([pod], 60) == [0], pod.stderr
    assert catalog.complete_steps(tmp_path) == [6, 3]


@pytest.mark.parametrize("layout", [Layout(2, {"data": SERVER}), *extended([ALONE, Layout(2, {"data": FSDP})])])
def test_a_final_save_that_fails_is_repeated(start: Starter, tmp_path: Path, layout: Layout) -> None:
    pods = train(start, tmp_path, layout, entry=f"{FAULTS}:disk_full_for_two_saves_after_step_3", grace=30)
    assert set(finish(pods, 60)) == {0}, pods[0].stderr
    assert catalog.complete_steps(tmp_path) == [6, 3]
    assert final(pods[0]) == (6, None, None, 2)


@pytest.mark.parametrize("layout", [ALONE, Layout(2, {"data": FSDP})])
def test_a_run_whose_final_state_cannot_be_saved_fails(start: Starter, tmp_path: Path, layout: Layout) -> None:
    (pod,) = train(start, tmp_path, layout, entry=f"{FAULTS}:disk_full_after_step_3", grace=10)
    assert pod.wait(60) == constants.EXIT_FINAL_CHECKPOINT_FAILED, pod.stderr
    assert catalog.complete_steps(tmp_path) == [3]
    assert pod.word is not None
    assert (pod.word.exception, pod.word.step, pod.word.peer_lost) == ("FinalCheckpointFailed", 6, False)
    cause = r"OSError: \[Errno 28\] No space left on device"
    # The second attempt follows after a second, a third one only if each takes little time.
    assert re.match(rf"the state after step 6 could not be saved, tried [23] times: {cause} \(", pod.word.message)
    assert pod.word.message.endswith(
        " MB are free on the volume); the newest checkpoint is of step 3; free or enlarge the volume of spec.checkpoint"
    )
    assert "Traceback" not in pod.stderr


def test_a_stop_whose_state_cannot_be_saved_says_so_and_is_no_failure_of_the_program(
    start: Starter, tmp_path: Path
) -> None:
    entry = f"{FAULTS}:disk_full_after_step_3"
    (pod,) = train(start, tmp_path, Layout(2, {"data": FSDP}), stop=1_000_000, entry=entry, grace=10)
    pod.wait_for_step(4)
    began = time.monotonic()
    os.kill(pod.pid, signal.SIGTERM)
    assert pod.wait(60) == 143, pod.stderr
    assert time.monotonic() - began < 10, "within the grace period"
    assert pod.word is not None
    assert pod.word.exception == "SIGTERM"
    assert "was told to stop by SIGTERM; the state after step " in pod.word.message
    assert "No space left on device" in pod.word.message


def test_a_run_with_too_little_shared_memory_saves_without_it(start: Starter, tmp_path: Path) -> None:
    entry = f"{FAULTS}:little_shared_memory"
    (pod,) = train(start, tmp_path, Layout(2, {"data": FSDP}), entry=entry, checkpoint={"async": True})
    assert pod.wait(60) == 0, pod.stderr
    assert catalog.complete_steps(tmp_path) == [6, 3]
    assert "enlarge /dev/shm, or set spec.checkpoint.async: false" in pod.stdout


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(errno.EROFS, ConfigError), (errno.EACCES, ConfigError), (errno.EIO, OSError), (errno.ENOSPC, None)],
)
def test_a_folder_that_exists_is_tested_for_writing(
    number: int, outcome: type[Exception] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv(constants.ENV_CHECKPOINTS, str(tmp_path))
    assert writable_root() == tmp_path
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    if outcome is None:
        assert writable_root() == tmp_path
    else:
        with pytest.raises(outcome):
            writable_root()


def test_the_death_of_the_background_process_ends_the_run(start: Starter, tmp_path: Path) -> None:
    """Otherwise the run would continue without saving anything."""
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
