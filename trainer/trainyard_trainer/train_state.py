"""The state of a run: what a checkpoint saves and restores."""

from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from torch import nn

from trainyard.config import RunConfig
from trainyard.protocol.progress import Progress
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.checkpoint.storage import load, saved_shapes
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.optim.guard import BadStepCounter
from trainyard_trainer.optim.state import Tensors, check_parameters, model_tensors
from trainyard_trainer.optim.update import Update
from trainyard_trainer.runtime import log
from trainyard_trainer.stopping import Convergence


class TrainState:
    """Parameters, optimizer state, and position of a run, as one rank holds them."""

    def __init__(
        self, config: RunConfig, named: Sequence[tuple[str, nn.Parameter]], update: Update, batches: Batches
    ) -> None:
        self._config = config
        self._named = named
        self._update = update
        self._batches = batches
        self.step = 0
        """Optimizer steps done, including those of earlier attempts."""
        self.bad_steps = BadStepCounter(config.health.bad_steps)
        self.convergence = Convergence(config.trainer.stop)
        self.stopped_because: str | None = None
        """Why an evaluation has ended the training; None if it has not."""
        self.progress: Progress | None = None
        """The last report; kept by rank 0."""

    def snapshot(self) -> tuple[Tensors, Manifest]:
        """Return the tensors of this rank, and the manifest of a checkpoint after the current step."""
        manifest = Manifest(
            step=self.step,
            samples=self._batches.samples_consumed(self.step),
            model=self._config.model.to_dict(),
            optimizer=self._config.trainer.optimizer.name,
            data=self._batches.fingerprint,
            convergence=self.convergence.state(),
            stopped_because=self.stopped_because,
            bad_steps=self.bad_steps.consecutive,
            progress=self.progress,
        )
        return self._tensors(), manifest

    def load(self, folder: Path, group: dist.ProcessGroup | None) -> Manifest:
        """Restore a checkpoint, whatever layout wrote it, except for samples and bad steps, which the caller sets.

        All ranks of `group` must call it; None: there is only one rank. Returns the checkpoint's manifest.

        Raises:
            ConfigError: the checkpoint belongs to another model or optimizer, or has other parameters.
        """
        manifest = Manifest.read(folder)
        manifest.check_compatible(self._config, folder)
        if manifest.data != self._batches.fingerprint:
            log.logger.warning("the data set differs from the one that the checkpoint %s was trained on", folder)
        saved = saved_shapes(folder)
        check_parameters(self._named, saved, folder)
        # The state of the optimizer exists from the first step on; a second copy would need memory for nothing.
        if not self._update.tensors():
            self._update.prepare(saved)
        load(folder, self._tensors(), group)
        self.step = manifest.step
        self.convergence.load_state(manifest.convergence)
        self.stopped_because = manifest.stopped_because
        self.progress = manifest.progress
        return manifest

    def _tensors(self) -> Tensors:
        return model_tensors(self._named) | self._update.tensors()
