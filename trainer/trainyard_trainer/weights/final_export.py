"""The export at the end of a run: all ranks write shards of it, from the last checkpoint."""

import time
from collections.abc import Callable
from pathlib import Path

from trainyard.resource.export import Export as ExportSpec
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.outcome import first_line
from trainyard_trainer.runtime import heartbeat, log
from trainyard_trainer.runtime.errors import ExportFailed
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.object_store import Location, location
from trainyard_trainer.runtime.world import World
from trainyard_trainer.weights.adapter_export import AdapterExport
from trainyard_trainer.weights.export import Export
from trainyard_trainer.weights.folder import open_weights
from trainyard_trainer.weights.weights import WeightsError

FOLDER = "export"
"""Default folder of an export, in the folder of the job's checkpoints."""


def export_folder(spec: ExportSpec, root: Location) -> Location:
    """Return the folder that an export is written to; `root`: folder of the job's checkpoints."""
    return root / FOLDER if spec.path is None else location(spec.path)


class FinalExport:
    """Exports the last checkpoint of a run. All ranks call it at the same point."""

    def __init__(
        self, spec: ExportSpec, root: Location, world: World, stops: Callable[[], bool], key: str | None = None
    ) -> None:
        """Prepare the export.

        Args:
            spec: spec.trainer.export.
            root: folder of the job's checkpoints.
            world: the ranks.
            stops: returns whether this rank was told to stop.
            key: spec.trainer.signingKeyFile.
        """
        self._dtype, self._format = spec.dtype, spec.format
        self._root, self._target = root, export_folder(spec, root)
        self._world, self._stops = world, stops
        self._key = None if key is None else Path(key)

    def run(self, step: int) -> bool:
        """Export the checkpoint of a step. Returns False if a rank was told to stop before the export was complete.

        Raises:
            ExportFailed: a rank could not write its part.
        """
        heartbeat.beat(Phase.CHECKPOINT)
        began, first = time.monotonic(), self._world.rank == 0
        jobs: list[Export | AdapterExport] = []
        self._together(lambda: jobs.append(self._plan(step)))
        (job,) = jobs
        self._together(job.begin if first else _nothing)
        self._together(lambda: job.write_shards(self._world.rank, self._world.size, stops=self._stops))
        if not self._world.all_true(not self._stops()):
            return False
        self._together(job.commit if first else _nothing)
        if first:
            seconds = time.monotonic() - began
            log.info(
                f"exported the weights of step {step} to {self._target} in {seconds:.1f} s", export=str(self._target)
            )
        return True

    def _plan(self, step: int) -> Export | AdapterExport:
        weights = open_weights(catalog.complete_folder(self._root, step))
        if self._format == "peft":
            return AdapterExport(weights, self._target, self._key)
        return Export(weights, self._target, self._dtype, key=self._key)

    def _together(self, action: Callable[[], None]) -> None:
        """Do this rank's part, and wait for the other ranks.

        Raises:
            ExportFailed: the part of a rank has failed.
        """
        problem = ""
        try:
            action()
        except (OSError, WeightsError) as error:
            problem = str(error) if isinstance(error, WeightsError) else first_line(error)
        if self._world.all_true(not problem):
            return
        raise ExportFailed(
            f"spec.trainer.export: the weights could not be written to {self._target}: "
            f"{problem or 'the log of another rank says why'} ({catalog.free_space(self._target.parent)}); the last "
            "checkpoint is complete, and the next attempt exports it again",
            on_other_ranks=not problem,
        )


def _nothing() -> None:
    """Do nothing: the first rank acts for all."""
