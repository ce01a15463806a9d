"""Builds everything that takes part in the training of one rank: the only place where it is wired together."""

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard.protocol.progress import Progress
from trainyard.run_record import DataRecord
from trainyard_trainer.checkpoint.run_folder import RunFolder, RunRecorder, describe_attempt
from trainyard_trainer.checkpoint.saver import Saver
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.metrics.breakdown import Breakdown
from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.metrics.profiling import Profiler
from trainyard_trainer.metrics.trackers import Trackers
from trainyard_trainer.parallel.parallelize import parameter_count
from trainyard_trainer.parameter_server import RemoteUpdate
from trainyard_trainer.plugin import load_plugin, prepare_samples
from trainyard_trainer.privacy.budget import Budget
from trainyard_trainer.progress_log import ProgressLog
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.device_settings import configure_device
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""Errors of a volume on which no file can be created, after a restart either."""

PREPARATION_LOG_SECONDS = 10.0
"""Seconds between two lines of the log about the preparation of the data."""


@dataclass(frozen=True)
class Run:
    """The parts of a run that outlive the wiring."""

    trainer: Trainer
    saver: Saver | None
    """None without spec.checkpoint."""
    progress_log: ProgressLog | None
    """On rank 0."""
    trackers: Trackers | None
    """On rank 0."""
    exporter: MetricsExporter | None
    """On the first rank of each pod."""

    def train(self) -> None:
        """Train to the end, and flush the experiment trackers."""
        self.trainer.run()
        if self.trackers is not None:
            self.trackers.close()

    def final_progress(self) -> Progress | None:
        """Return the progress for the termination message: the last report, and the counts of this attempt."""
        last = None if self.progress_log is None else self.progress_log.last
        if last is None or self.exporter is None:
            return last
        return last.replace(**self.exporter.attempt_progress())


def build_run(config: RunConfig, world: World, attempt: int, exporter: MetricsExporter | None) -> Run:
    """Prepare the data, form the process group, build the model, and resume from the newest checkpoint.

    Args:
        config: configuration of the run.
        world: the ranks; their process group is formed here.
        attempt: number of the attempt.
        exporter: the metrics page of this pod; None on all ranks but the first of a pod.

    Raises:
        ConfigError: the configuration does not fit the data, the checkpoint, or the machine.
    """
    plugin = load_plugin(config)
    root = None if config.checkpoint is None else _checkpoint_root()
    folder = None if root is None else RunFolder(root)
    tokenizer = None if folder is None else folder.tokenizer
    samples = prepare_samples(config, plugin, PreparationLog(exporter), tokenizer)
    # Data are prepared on all processors, and before CUDA has threads.
    configure_device(world.device, bfloat16=config.precision == "bfloat16")
    world.init_process_group(
        saves=config.checkpoint is not None,
        patience=config.health.startup_timeout_seconds,
        hang_timeout=config.health.hang_timeout_seconds,
    )
    if not world.all_equal(samples.fingerprint):
        raise ConfigError(
            "spec.trainer.data: the workers do not hold the same data; mount the same volume into each of them"
        )
    trainer = Trainer(config, world, samples, plugin)
    data = DataRecord(
        fingerprint=samples.fingerprint,
        samples=samples.count,
        eval_samples=trainer.batches.eval_samples,
        sources=tuple(samples.sources),
    )
    record = describe_attempt(config, data, samples.tokenizer)
    if folder is not None:
        folder.check(record, announce=world.rank == 0)
    _log_setup(config, world, trainer, samples)
    profiler = None if root is None else Profiler(config.trainer.profile, root, world.rank, attempt, world.device)
    # Observers that trace steps come first, so that a trace does not contain the others.
    if profiler is not None:
        trainer.observers.append(profiler)
    if exporter is not None and world.rank == 0:
        trainer.observers.append(Breakdown(exporter.broken_down, world.device, profiler))
    if exporter is not None:
        trainer.observers.append(exporter)
    saver = None
    if config.checkpoint is not None and root is not None and folder is not None:
        remote_save = trainer.update.save if isinstance(trainer.update, RemoteUpdate) else None
        saver = Saver(config.checkpoint, root, world, trainer.state, trainer.observers, trainer.agreement, remote_save)
        trainer.state.run = folder.run
        budget = None
        if config.trainer.privacy is not None:
            budget = Budget(config, trainer.batches.train_samples, samples.fingerprint, folder, world)
        trainer.resume(saver, budget)
        record = folder.record(record, trainer.step, trainer.state.parent)
        trainer.state.run = record.id
        if world.rank == 0:
            trainer.observers.append(RunRecorder(folder, record, samples.tokenizer))
    else:
        trainer.initialize()
    if world.rank != 0:
        return Run(trainer, saver, progress_log=None, trackers=None, exporter=exporter)
    progress_log = ProgressLog(trainer.state, attempt)
    trackers = Trackers(config, root, record.id)
    trainer.observers += [progress_log, trackers]
    return Run(trainer, saver, progress_log, trackers, exporter)


class PreparationLog:
    """Shows the progress of the preparation on the metrics page, and from time to time in the log."""

    def __init__(self, exporter: MetricsExporter | None) -> None:
        self._exporter = exporter
        self._logged = 0.0

    def __call__(self, share: float, seconds: float) -> None:
        """Show that a share of the data is prepared, after so many seconds."""
        if self._exporter is not None:
            self._exporter.prepared(share, seconds)
        if seconds - self._logged >= PREPARATION_LOG_SECONDS:
            self._logged = seconds
            log.info(f"{share:.1%} of the data is prepared, after {seconds:.0f} s", dataPrepared=round(share, 3))


def _checkpoint_root() -> Path:
    """Return the folder of the job on the checkpoint volume; it exists then, and files can be created in it.

    Raises:
        ConfigError: the volume is not writable.
        OSError: the storage fails.
    """
    root = Path(os.environ.get(constants.ENV_CHECKPOINTS) or constants.CHECKPOINT_MOUNT)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # The folder may be another user's, or the volume may be mounted read-only.
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        # A full volume costs the checkpoints that do not fit; an unavailable one may be back after a restart.
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and root.is_dir():
            return root
        if error.errno not in _NOT_WRITABLE:
            raise
        raise ConfigError(
            f"spec.checkpoint: {root} cannot be written to ({error.strerror}); choose a volume that user "
            f"{os.getuid()} may write to"
        ) from error
    return root


def _log_setup(config: RunConfig, world: World, trainer: Trainer, samples: Samples) -> None:
    """Log the size of the model, the data set, and the layout of the ranks."""
    parameters = parameter_count(config, samples)
    log.info(
        f"{parameters:,} parameters, {samples}, {world.size} ranks on {world.device.type}: {config.mesh}",
        parameters=parameters,
        samples=trainer.batches.train_samples,
        evalSamples=trainer.batches.eval_samples,
        worldSize=world.size,
        device=world.device.type,
        precision=config.precision,
        threads=torch.get_num_threads(),
    )
