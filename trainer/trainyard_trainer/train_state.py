"""The state of a run: what a checkpoint saves and restores."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import nn

from trainyard.config import RunConfig
from trainyard.protocol.progress import Progress
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.checkpoint.storage import load, saved_shapes
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.timeline import Phase, Timeline, in_samples_of
from trainyard_trainer.optim.guard import BadStepCounter, GradientGuard
from trainyard_trainer.optim.state import Tensors, check_parameters, model_tensors
from trainyard_trainer.optim.update import Update
from trainyard_trainer.privacy.budget import Budget
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.stopping import Convergence


class TrainState:
    """Parameters, optimizer state, and position of a run, as one rank holds them."""

    def __init__(
        self,
        config: RunConfig,
        named: Sequence[tuple[str, nn.Parameter]],
        update: Update,
        batches: Batches,
        guard: GradientGuard | None,
    ) -> None:
        """`guard`: None with a parameter server, which has it."""
        self._config = config
        self._named = named
        self._update = update
        self._batches = batches
        self._guard = guard
        self.timeline = Timeline(batches.global_batch, config.tokens_per_sample)
        """Samples and tokens consumed after each step."""
        self.run: str | None = None
        """Identity of the run, for checkpoints."""
        self.parent: str | None = None
        """Identity of the run that wrote the checkpoint from which this attempt resumes, if it is known."""
        self.step = 0
        """Optimizer steps done, including those of earlier attempts."""
        self.bad_steps = BadStepCounter(config.health.bad_steps)
        self.convergence = Convergence(config.trainer.stop)
        self.stopped_because: str | None = None
        """Why an evaluation has ended the training; None if it has not."""
        self.budget: Budget | None = None
        """The budget of a private run; None for others."""
        self.progress: Progress | None = None
        """The last report; kept by rank 0."""

    def snapshot(self) -> tuple[Tensors, Manifest]:
        """Return the tensors of this rank, and the manifest of a checkpoint after the current step."""
        manifest = Manifest(
            run=self.run,
            step=self.step,
            samples=self.timeline.samples_at(self.step),
            tokens=self.timeline.tokens_at(self.step),
            phases=self.timeline.phases,
            model=self._config.model.to_dict(),
            optimizer=self._config.trainer.optimizer.name,
            data=self._batches.fingerprint,
            convergence=self.convergence.state(),
            stopped_because=self.stopped_because,
            bad_steps=self.bad_steps.consecutive,
            norms=() if self._guard is None else self._guard.norms,
            privacy=None if self.budget is None else self.budget.spent(self.step),
            progress=self.progress,
        )
        return self._tensors(), manifest

    def resume(self, folder: Location, group: dist.ProcessGroup | None) -> None:
        """Restore a checkpoint, whatever layout wrote it, and continue behind the samples that it has consumed.

        All ranks of `group` must call it; None: there is only one rank. If the sequence length has changed, samples are
        numbered differently, and the position is carried over in tokens.

        Raises:
            ConfigError: the checkpoint belongs to another model or optimizer, or has other parameters.
        """
        manifest = self._load(folder, group)
        # With a record of the run, the table of `trainyard.resume` has said this already.
        if self.run is None and manifest.data != self._batches.fingerprint:
            log.logger.warning("the data set differs from the one that the checkpoint %s was trained on", folder)
        self.parent = manifest.run
        samples = in_samples_of(self._config.tokens_per_sample, manifest.samples, manifest.tokens_per_sample)
        self.move(samples, manifest.tokens_consumed, manifest.history)
        self.bad_steps.consecutive = manifest.bad_steps

    def load_weights(self, folder: Location, group: dist.ProcessGroup | None) -> None:
        """Load the parameters of a checkpoint, whatever layout wrote it, and nothing of its optimizer.

        All ranks of `group` must call it; None: there is only one rank.

        Raises:
            ConfigError: the checkpoint belongs to another model.
        """
        manifest = Manifest.read(folder)
        manifest.check_compatible(self._config, folder)
        check_parameters(self._named, saved_shapes(folder), folder)
        load(folder, model_tensors(self._named), group)
        self.step, self.parent, self.progress = manifest.step, manifest.run, manifest.progress
        samples = in_samples_of(self._config.tokens_per_sample, manifest.samples, manifest.tokens_per_sample)
        self.move(samples, manifest.tokens_consumed, manifest.history)

    def roll_back(self, folder: Location, group: dist.ProcessGroup | None, failed_step: int) -> None:
        """Restore a checkpoint of this run, and continue behind the samples that steps up to `failed_step` consumed."""
        samples, tokens = self.timeline.samples_at(failed_step), self.timeline.tokens_at(failed_step)
        self._load(folder, group)
        self.move(samples, tokens, self.timeline.phases)

    def move(self, samples: int, tokens: int, history: Sequence[Phase]) -> None:
        """Continue behind so many samples and tokens, after steps with this history of batches."""
        self.timeline.move(self.step, samples, tokens, history)
        self._batches.set_position(self.step, samples)

    def _load(self, folder: Location, group: dist.ProcessGroup | None) -> Manifest:
        """Restore everything but the position in the data, and return the checkpoint's manifest."""
        manifest = Manifest.read(folder)
        manifest.check_compatible(self._config, folder)
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
        if self._guard is not None:
            self._guard.restore(manifest.norms)
        return manifest

    def _tensors(self) -> Tensors:
        return model_tensors(self._named) | self._update.tensors()
