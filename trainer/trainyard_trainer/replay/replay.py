"""The state of a run before any of its steps, restored in this process."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainyard.config import RunConfig
from trainyard.protocol.constants import ENV_CHECKPOINTS
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.checkpoint.run_folder import RunFolder
from trainyard_trainer.data.encoding_tasks import available_memory
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.parallel.parallelize import parameter_count
from trainyard_trainer.plugin import Plugin, load_plugin, prepare_samples
from trainyard_trainer.record.statement import VerificationFailed
from trainyard_trainer.replay.saved_run import ReplayError, SavedRun, in_one_process
from trainyard_trainer.runtime.device_settings import configure_device
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer

Report = Callable[[str, int, int], None]
"""Receives what is done, how much of it, and how much there is in all."""
BYTES_PER_PARAMETER = 16
"""Parameters, gradients and the state of AdamW, in float32."""


class Replay:
    """A run in one process, before one of its steps."""

    def __init__(self, run: SavedRun, step: int) -> None:
        """Restore the newest checkpoint before a step, from 1, or the initial values; `trainer` makes steps from there.

        Raises:
            ReplayError: there is no checkpoint before it, it is damaged, or the model does not fit into memory.
            VerificationFailed: the data or the excluded samples are others than those of the run.
            ConfigError: the data or the plug-in is missing or does not match the configuration.
        """
        self.run = run
        self.config: RunConfig = in_one_process(run.config_of(step))
        """Configuration of the steps, for one process."""
        folder = run.checkpoint_before(step)
        if folder is not None and (problem := catalog.find_damage(folder)) is not None:
            raise ReplayError(f"the checkpoint is damaged: {problem}; choose a step that follows another checkpoint")
        self.plugin: Plugin = load_plugin(self.config)
        self.samples: Samples = read_samples(run, self.config, self.plugin)
        world = World.alone()
        configure_device(world.device, bfloat16=self.config.precision == "bfloat16")
        _check_memory(parameter_count(self.config, self.samples), world.device)
        self.trainer = Trainer(self.config, world, self.samples, self.plugin)
        """Model, data and optimizer; the steps up to the checkpoint are done."""
        self._check_exclusions(step)
        # A checkpoint does not have what is not trained.
        if folder is None or self.config.trainer.model.lora is not None:
            self.trainer.initialize()
        if folder is not None:
            self.trainer.state.run = run.record.id
            self.trainer.state.resume(folder, dist.group.WORLD)
        self.skipped = run.skipped_steps(step)
        """Steps that changed nothing when the run made them."""
        self.trainer.update = _SkippingUpdate(self.trainer, self.skipped)
        later = run.manifest_of(step)
        if later is not None:
            self._continue_as(later)

    def _continue_as(self, later: Manifest) -> None:
        """Read the samples that the run has read, which a checkpoint behind the step knows: it may have rolled back."""
        state = self.trainer.state
        for phase in reversed(later.history):
            if phase.step <= state.step:
                state.move(phase.samples_at(state.step), phase.tokens_at(state.step), later.history)
                return

    def _check_exclusions(self, step: int) -> None:
        """Check that a file of excluded samples is what it was."""
        if self.run.record_of(step).data.exclusion != self.trainer.batches.excluded.identity:
            raise VerificationFailed(
                "spec.trainer.data.exclude.file: names other samples than it did when the run made the step; restore it"
            )

    def forward_to(self, step: int) -> Iterator[int]:
        """Make the steps that precede a step, from 1, and yield the number of each that is done."""
        for outcome in self.trainer.make_steps(step - 1):
            outcome.values()
            yield outcome.step

    def close(self) -> None:
        """Stop reading ahead."""
        self.trainer.batches.close()


class _SkippingUpdate:
    """The update of a trainer, which skips the steps that the run has skipped: a faulty device may have caused them."""

    def __init__(self, trainer: Trainer, skipped: frozenset[int]) -> None:
        self._trainer, self._update, self._skipped = trainer, trainer.update, skipped

    def step(self, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Update the parameters, or leave them as they are, as after any gradient that is not finite."""
        if self._trainer.step + 1 in self._skipped:
            gradients = [p.grad for part in self._trainer.parts for p in part.parameters()]
            for gradient in gradients:
                if gradient is not None:
                    gradient.fill_(math.nan)
        return self._update.step(learning_rate)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._update, name)


@contextmanager
def replay_of(run: SavedRun, step: int) -> Iterator[Replay]:
    """Hold a run in this process, before one of its steps; there can be only one at a time. See `Replay`."""
    before = os.environ.get(ENV_CHECKPOINTS)
    os.environ.pop(ENV_CHECKPOINTS, None)
    # Tokens that the run has prepared are beside its checkpoints, unless these are in an object store.
    if isinstance(run.root, Path):
        os.environ[ENV_CHECKPOINTS] = str(run.root)
    replay: Replay | None = None
    try:
        replay = Replay(run, step)
        yield replay
    finally:
        if replay is not None:
            replay.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        os.environ.pop(ENV_CHECKPOINTS, None)
        if before is not None:
            os.environ[ENV_CHECKPOINTS] = before


def read_samples(run: SavedRun, config: RunConfig, plugin: Plugin) -> Samples:
    """Return the samples of a run.

    Raises:
        VerificationFailed: the data are others than those that the run was trained on.
        ConfigError: the data is missing.
    """
    samples = prepare_samples(config, plugin, tokenizer=RunFolder(run.root).tokenizer)
    expected = run.record.data
    if samples.fingerprint != expected.fingerprint:
        raise VerificationFailed(
            f"the data has the fingerprint {samples.fingerprint:x}, but the run was trained on data with "
            f"{expected.fingerprint:x}; restore the data of the run at the paths of spec.trainer.data"
        )
    return samples


def _check_memory(parameters: int, device: torch.device) -> None:
    """Check that parameters, gradients and optimizer state fit into this process."""
    needed = parameters * BYTES_PER_PARAMETER
    available = available_memory()
    if device.type == "cuda":
        with suppress(RuntimeError):
            available = torch.cuda.mem_get_info(device)[0]
    if needed > available:
        raise ReplayError(
            f"one process needs {needed / 1e9:.0f} GB for {parameters:,} parameters with their gradients and "
            f"optimizer state, but {available / 1e9:.0f} GB are free; use a larger machine"
        )


def checkpoint_at(run: SavedRun, step: int) -> Location:
    """Return the checkpoint of a step.

    Raises:
        ReplayError: there is none.
    """
    if step not in run.steps:
        there = ", ".join(map(str, run.steps)) or "none"
        raise ReplayError(f"{run.root} has no checkpoint of step {step}; there are {there}")
    return catalog.complete_folder(run.root, step)
