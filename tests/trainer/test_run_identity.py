"""A run knows what it is made of: its record and its tokenizer, and what happens if an attempt differs from it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.layouts import FSDP, Layout
from tests.trainer.pods import Pod, Starter, finish
from tests.trainer.test_resume import losses, train
from trainyard import __version__
from trainyard.protocol import constants
from trainyard.run_record import RUN_FILE, TOKENIZER_FILE, RunRecord
from trainyard_trainer.checkpoint.manifest import MANIFEST, Manifest

ALONE = Layout(1, {})


def ended(pods: list[Pod], code: int = 0) -> Pod:
    assert set(finish(pods, 90)) == {code}, pods[0].stderr
    return pods[0]


def read(folder: Path) -> RunRecord:
    record = RunRecord.read(folder)
    assert record is not None
    return record


def test_the_record_says_what_a_run_is_made_of_and_what_changed(start: Starter, tmp_path: Path) -> None:
    data = {"evalFraction": 0.001}
    ended(train(start, tmp_path, ALONE, stop=3, data=data, seed=5))
    first = read(tmp_path)
    assert first.config["trainer"]["seed"] == 5
    assert first.config["model"]["dim"] == 32
    assert first.data.samples > first.data.eval_samples > 0
    assert (first.tokenizer, first.parent, first.image, first.changes) == (None, None, None, ())
    assert first.versions["trainyard"] == __version__
    assert first.versions["torch"] == torch.__version__
    manifest = Manifest.read(tmp_path / "step-00000003")
    assert (manifest.run, manifest.data) == (first.id, first.data.fingerprint)
    layout = Layout(2, {"data": FSDP})
    pod = ended(train(start, tmp_path, layout, data=data, seed=5, batch={"global": 16}))
    second = read(tmp_path)
    assert (second.id, second.created) == (first.id, first.created)
    assert [(c.step, c.field, c.before, c.after) for c in second.changes] == [
        (3, "spec.parallelism.data.mode", "ddp", "fsdp"),
        (3, "the number of ranks", 1, 2),
        (3, "spec.trainer.batch.global", 8, 16),
        (3, "spec.trainer.stop.steps", 3, 6),
    ]
    assert "changed since the last attempt: spec.trainer.batch.global: 8 -> 16: the next samples follow" in pod.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN_FILE, "step-00000003", "step-00000006"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "spec.trainer.seed is 1, but 0 in the run of "),
        ({"data": {"evalFraction": 0.1}}, "spec.trainer.data.evalFraction is 0.1, but 0.0 in the run of "),
    ],
)
def test_a_change_that_would_repeat_samples_is_refused_by_all_ranks(
    start: Starter, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    ended(train(start, tmp_path, ALONE, stop=3))
    before = (tmp_path / RUN_FILE).read_bytes()
    pod = ended(train(start, tmp_path, Layout(2, {}), **changes), constants.EXIT_INVALID_CONFIG)
    assert pod.word is not None
    assert pod.word.message.startswith(message)
    assert "Traceback" not in pod.stderr
    assert (tmp_path / RUN_FILE).read_bytes() == before


def test_a_folder_without_checkpoints_binds_no_run(start: Starter, tmp_path: Path) -> None:
    """The first attempt ended before it saved anything, and its configuration may be corrected."""
    ended(train(start, tmp_path, ALONE, stop=3))
    first = read(tmp_path)
    for folder in tmp_path.glob("step-*"):
        folder.rename(tmp_path / f"{folder.name}.partial")
    ended(train(start, tmp_path, ALONE, stop=3, seed=1))
    second = read(tmp_path)
    assert (second.id != first.id, second.parent, second.changes) == (True, None, ())


def test_a_run_that_begins_with_the_checkpoint_of_another_names_it(start: Starter, tmp_path: Path) -> None:
    ended(train(start, tmp_path / "first", ALONE, stop=3))
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "step-00000003").symlink_to(tmp_path / "first" / "step-00000003")
    ended(train(start, tmp_path / "second", ALONE))
    first, second = read(tmp_path / "first"), read(tmp_path / "second")
    assert (second.id != first.id, second.parent) == (True, first.id)


def test_checkpoints_of_an_older_version_are_resumed(start: Starter, tmp_path: Path) -> None:
    """Format 1 has neither a record of the run, nor tokens, phases or norms."""
    ended(train(start, tmp_path, ALONE, stop=3))
    (tmp_path / RUN_FILE).unlink()
    path = tmp_path / "step-00000003" / MANIFEST
    content = json.loads(path.read_text()) | {"format": 1, "data": 1}
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in ("run", "tokens", "phases", "norms")}))
    pod = ended(train(start, tmp_path, ALONE, batch={"global": 16}, stop_by={"tokens": 1024}))
    assert sorted(losses(pod)) == [4, 5, 6]
    assert "the data set differs from the one that the checkpoint" in pod.stdout
    assert read(tmp_path).parent is None


BPE = {"tokenizer": "bpe", "vocabSize": 512, "sequenceLength": 16}


def test_the_tokenizer_of_a_run_is_saved_and_kept_when_the_data_grow(start: Starter, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    data = {"path": str(text), **BPE}
    ended(train(start, tmp_path / "run", ALONE, stop=60, data=data, checkpoint={"everySteps": 60}))
    tokenizer = (tmp_path / "run" / TOKENIZER_FILE).read_bytes()
    record = read(tmp_path / "run")
    assert record.tokenizer is not None
    assert record.tokenizer.sha256 == hashlib.sha256(tokenizer).hexdigest()
    # Learnt again, the tokenizer would have entries for the words of the new text, which the next test shows.
    (text / "b.txt").write_text("pack my box with five dozen liquor jugs and sphinx of black quartz. " * 4000)
    (text / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 401)
    pod = ended(train(start, tmp_path / "run", ALONE, stop=60 + 3, data=data))
    assert (tmp_path / "run" / TOKENIZER_FILE).read_bytes() == tokenizer
    assert "the data (fingerprint): " in pod.stdout
    assert read(tmp_path / "run").tokenizer == record.tokenizer


def test_another_tokenizer_is_refused(start: Starter, tmp_path: Path) -> None:
    """The tokenizer of the run is gone, and the one that is learnt from the grown data is another."""
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    data = {"path": str(text), **BPE}
    ended(train(start, tmp_path / "run", ALONE, stop=3, data=data))
    (tmp_path / "run" / TOKENIZER_FILE).unlink()
    (text / "b.txt").write_text("pack my box with five dozen liquor jugs. " * 4000)
    pod = ended(train(start, tmp_path / "run", ALONE, data=data), constants.EXIT_INVALID_CONFIG)
    assert pod.word is not None
    assert pod.word.message.startswith("the tokenizer (SHA-256) is ")


def test_an_interrupted_run_finds_the_same_spikes(start: Starter, tmp_path: Path) -> None:
    """The norms of the steps before the interruption count, so that a resumed run is not blind for 20 steps."""
    ended(train(start, tmp_path, ALONE, stop=24, checkpoint={"everySteps": 24}))
    manifest = Manifest.read(tmp_path / "step-00000024")
    assert len(manifest.norms) == 24
    pod = ended(train(start, tmp_path, ALONE, entry="tests.trainer.faults:spike_at_samples_200", stop=28, spike=1000))
    (line,) = [line for line in pod.stdout.splitlines() if "skipped the step" in line]
    assert "step 26: the norm" in line
