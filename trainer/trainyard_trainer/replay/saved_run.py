"""A run as it was saved: its record, its checkpoints, and what its steps were made with."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from trainyard.config import RunConfig
from trainyard.mesh import Mesh
from trainyard.resource.parallelism import Parallelism
from trainyard.run_record import RUN_FILE, RunRecord
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.record.statement import CHECKPOINTS, read_predicate
from trainyard_trainer.runtime.object_store import Location


class ReplayError(ValueError):
    """A run cannot be replayed. The message has one line, with the fix."""


@dataclass(frozen=True)
class SavedRun:
    """A folder of checkpoints."""

    root: Location
    record: RunRecord
    steps: tuple[int, ...]
    """Steps of the complete checkpoints, the oldest first."""

    @classmethod
    def open(cls, path: Location) -> "SavedRun":
        """Open a run.

        Args:
            path: folder of its checkpoints, one of the checkpoints, or a folder of `trainyard run`.

        Raises:
            ReplayError: there is no run, or its record cannot be read.
        """
        if not path.is_dir():
            raise ReplayError(f"{path} is not a folder; name the folder of a run, which has {RUN_FILE}")
        parent = path.resolve().parent if isinstance(path, Path) else path.parent
        for root in (path, path / CHECKPOINTS, parent):
            try:
                record = RunRecord.read(root)
            except ValueError as error:
                raise ReplayError(str(error)) from error
            if record is not None:
                return cls(root, record, tuple(reversed(catalog.complete_steps(root))))
        raise ReplayError(
            f"{path} has no {RUN_FILE}; name the folder of a run that has written checkpoints (spec.checkpoint)"
        )

    def checkpoint_before(self, step: int) -> Location | None:
        """Return the newest checkpoint that precedes a step, from 1; None: the run began with initial values.

        Raises:
            ReplayError: there is none, and the run began with the weights of another, or the step does not exist.
        """
        if step < 1:
            raise ReplayError(f"there is no step {step}; steps are counted from 1")
        found = [saved for saved in self.steps if saved < step]
        if found:
            return catalog.complete_folder(self.root, found[-1])
        # Weights of spec.trainer.model.from are read again, as for the first step.
        if self.record.parent is not None and self.config_of(step).trainer.model.from_ is None:
            raise ReplayError(
                f"no checkpoint in {self.root} precedes step {step}, and the run began with a checkpoint of another "
                f"one; the oldest is of step {self.steps[0] if self.steps else 'none'}, choose a later step, or keep "
                "more checkpoints (spec.checkpoint.keep)"
            )
        return None

    def record_of(self, step: int) -> RunRecord:
        """Return the record of the attempt that made a step, as far as it is known: else that of the newest attempt.

        Raises:
            RecordError: the record of the next checkpoint cannot be read.
        """
        following = self._following(step)
        predicate = None if following is None else read_predicate(following)
        return self.record if predicate is None else predicate.run

    def config_of(self, step: int) -> RunConfig:
        """Return the configuration that a step was made with.

        Raises:
            ReplayError: it cannot be read, or the run is private.
        """
        config = self.record_of(step).config
        if config.get("trainer", {}).get("privacy") is not None:
            raise ReplayError(
                "the run is private (spec.trainer.privacy): its samples, and what is added to its gradients, follow "
                "from a secret key, so its steps cannot be made again"
            )
        try:
            # Another version may have written it.
            return RunConfig.model_validate(config, extra="ignore")
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ReplayError(
                f"{self.root / RUN_FILE}: config.{field}: {first['msg']}; use the version of Trainyard that wrote it"
            ) from error

    def manifest_of(self, step: int) -> Manifest | None:
        """Return the manifest of the first checkpoint that was written after a step; None if there is none.

        It says where in the data the step was, also after a rollback or a change of the batch.
        """
        following = self._following(step)
        return None if following is None else Manifest.read(following)

    def skipped_steps(self, step: int) -> frozenset[int]:
        """Return the steps that changed nothing, between the checkpoints around a step.

        Raises:
            RecordError: the record of the next checkpoint cannot be read.
        """
        following = self._following(step)
        predicate = None if following is None else read_predicate(following)
        return frozenset(() if predicate is None else predicate.skipped)

    def _following(self, step: int) -> Location | None:
        found = [saved for saved in self.steps if saved >= step]
        return catalog.complete_folder(self.root, found[0]) if found else None


def in_one_process(config: RunConfig) -> RunConfig:
    """Return a configuration for one process that gives the same steps, to rounding; the same if it is for one."""
    if config.world_size == 1 and not config.servers:
        return config
    # What only makes a run faster, or saves memory, is left out: compiling takes longer than a few steps.
    trainer = config.trainer.replace(compile=False, float8=False)
    return config.replace(world_size=1, servers=0, mesh=Mesh(), parallelism=Parallelism(), trainer=trainer)
