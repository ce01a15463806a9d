"""A run succeeds only if all that it should leave behind is there."""

from pathlib import Path
from typing import Any

from tests.support.run_config import make_config
from tests.trainer.pods import Pod, Starter
from trainyard.protocol import constants
from trainyard.run_record import RunRecord
from trainyard_trainer.checkpoint import catalog

FAULTS = "tests.trainer.storage_faults"


def train(start: Starter, folder: Path, entry: str, grace: int) -> Pod:
    checkpoint: dict[str, Any] = {"everySteps": 100, "async": False}
    env = {constants.ENV_CHECKPOINTS: str(folder), constants.ENV_GRACE: str(grace)}
    [pod] = start(make_config(stop={"steps": 2}, checkpoint=checkpoint), procs=1, entry=f"{FAULTS}:{entry}", env=env)
    return pod


def test_a_run_whose_record_cannot_be_written_has_not_succeeded(start: Starter, tmp_path: Path) -> None:
    """The checkpoint is there, but nobody could tell what it is made of."""
    pod = train(start, tmp_path, "no_record", grace=6)
    assert pod.wait(60) == constants.EXIT_FINAL_CHECKPOINT_FAILED, pod.stderr
    assert pod.word is not None
    assert pod.word.message.startswith("the record of the run could not be saved, tried 2 times: run.json could not be")
    assert "No space left on device" in pod.word.message
    assert pod.word.message.endswith(
        "the newest checkpoint is of step 2; free or enlarge the volume of spec.checkpoint"
    )
    assert catalog.complete_steps(tmp_path) == [2]


def test_a_run_waits_at_its_end_for_its_record(start: Starter, tmp_path: Path) -> None:
    pod = train(start, tmp_path, "no_record_at_first", grace=60)
    assert pod.wait(60) == 0, pod.stderr
    assert RunRecord.read(tmp_path) is not None
    assert catalog.complete_steps(tmp_path) == [2]
