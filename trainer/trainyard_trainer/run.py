"""Builds everything that takes part in the training of one rank: the only place where it is wired together."""

import errno
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from trainyard.config import RunConfig
from trainyard.protocol.progress import Progress
from trainyard.run_record import DataRecord
from trainyard_trainer.checkpoint import catalog
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
from trainyard_trainer.record.recorder import CheckpointRecorder
from trainyard_trainer.reports import Reports
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.device_settings import configure_device
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import (
    Location,
    ObjectPath,
    ObjectStoreRefused,
    ObjectStoreUnavailable,
    location,
)
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer
from trainyard_trainer.weights.final_export import FinalExport
from trainyard_trainer.weights.initial import base_of, check_tokenizer, initial_record, initial_weights_digest

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""Errors of a volume on which no file can be created, after a restart either."""

STORE_SECONDS = 600.0
"""How long the start of an attempt waits for an object store that does not answer."""
STORE_PAUSE_SECONDS = 5.0
"""Pause before it is tried again."""
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
    export: FinalExport | None
    """None without spec.trainer.export."""
    reports: Reports | None
    """None without spec.checkpoint."""

    def train(self) -> None:
        """Train to the end and export the weights, or evaluate; write reports, and flush the experiment trackers.

        Raises:
            ExportFailed: training is complete, but the weights could not be exported.
        """
        if self.trainer.config.trainer.task == "evaluate":
            self.trainer.evaluate_only()
        else:
            self.trainer.run()
        if self.export is not None and not self.trainer.interrupted:
            self.trainer.interrupted = not self.export.run(self.trainer.step)
        if self.reports is not None and not self.trainer.interrupted:
            self.reports.write(self.trainer)
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
    if root is not None and config.trainer.export is not None and config.trainer.export.path is not None:
        _writable(location(config.trainer.export.path), "spec.trainer.export.path")
    folder = None if root is None else RunFolder(root)
    tokenizer = None if folder is None else folder.tokenizer
    # The run that this attempt resumes, or else the one that has written the weights with which it begins.
    origin = (None if folder is None else folder.existing) or initial_record(config)
    trained_on = () if origin is None else origin.data.sources
    samples = prepare_samples(config, plugin, PreparationLog(exporter), tokenizer, trained_on)
    # Data are prepared on all processors, and before CUDA has threads.
    configure_device(world.device, bfloat16=config.precision == "bfloat16")
    world.init_process_group(
        saves=config.checkpoint is not None,
        patience=config.health.startup_timeout_seconds,
        hang_timeout=config.health.hang_timeout_seconds,
    )
    if config.trainer.model.from_ is not None and (folder is None or folder.run is None):
        check_tokenizer(config, samples.tokenizer)
    if not world.all_equal(samples.fingerprint):
        raise ConfigError(
            "spec.trainer.data: the workers do not hold the same data; mount the same volume into each of them"
        )
    trainer = Trainer(config, world, samples, plugin)
    if not world.all_equal(trainer.batches.excluded.identity or 0):
        raise ConfigError(
            "spec.trainer.data.exclude.file: the workers do not see the same file; mount the same volume into each of "
            "them"
        )
    data = DataRecord(
        fingerprint=samples.fingerprint,
        samples=samples.count,
        eval_samples=trainer.batches.eval_samples,
        sources=tuple(samples.sources),
        exclusion=trainer.batches.excluded.identity,
    )
    record = describe_attempt(config, data, samples.tokenizer, attempt).replace(base=base_of(config))
    evaluates = config.trainer.task == "evaluate"
    if folder is not None:
        folder.check(record, announce=world.rank == 0, weights_only=evaluates)
    _log_setup(config, world, trainer, samples)
    # Traces and event files are for tools that read files.
    volume = root if isinstance(root, Path) else None
    profiler = None if volume is None else Profiler(config.trainer.profile, volume, world.rank, attempt, world.device)
    # Observers that trace steps come first, so that a trace does not contain the others.
    if profiler is not None:
        trainer.observers.append(profiler)
    if exporter is not None and world.rank == 0:
        trainer.observers.append(Breakdown(exporter.broken_down, world.device, profiler))
    if exporter is not None:
        trainer.observers.append(exporter)
    saver, export, reports = None, None, None
    if config.checkpoint is not None and root is not None and folder is not None:
        remote_save = trainer.update.save if isinstance(trainer.update, RemoteUpdate) else None
        saver = Saver(config.checkpoint, root, world, trainer.state, trainer.observers, trainer.agreement, remote_save)
        trainer.state.run = folder.run
        if evaluates:
            trainer.load_weights(saver)
        else:
            trainer.resume(saver, _budget(config, trainer, samples, folder, world))
        known = folder.existing if evaluates else folder.record(record, trainer.step, trainer.state.parent)
        record = known or record
        trainer.state.run = record.id
        # An evaluation changes nothing of the run whose model it evaluates.
        if world.rank == 0 and not evaluates:
            initial = initial_weights_digest(config) if saver.resumed_step is None else None
            recorder = CheckpointRecorder(root, record, config, world.device, saver.resumed_step, initial)
            saver.record = RunRecorder(folder, record, samples.tokenizer)
            trainer.observers += [saver.record, recorder]
        if config.trainer.export is not None and not evaluates:
            export = FinalExport(
                config.trainer.export,
                root,
                world,
                stops=lambda: saver is not None and saver.told_to_stop,
                key=config.trainer.signing_key_file,
            )
        reports = Reports(config, root, known or origin, samples)
    else:
        trainer.initialize()
    if world.rank != 0:
        return Run(trainer, saver, None, None, exporter, export, reports)
    progress_log = ProgressLog(trainer.state, attempt)
    trackers = Trackers(config, volume, record.id)
    trainer.observers += [progress_log, trackers]
    return Run(trainer, saver, progress_log, trackers, exporter, export, reports)


def _budget(config: RunConfig, trainer: Trainer, samples: Samples, folder: RunFolder, world: World) -> Budget | None:
    """Return the budget of a private run."""
    if config.trainer.privacy is None:
        return None
    identity = (samples.fingerprint, trainer.batches.excluded.identity)
    return Budget(config, trainer.batches.train_samples, identity, folder, world)


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


def _checkpoint_root() -> Location:
    """Return the folder of the job on the checkpoint volume or in an object store; files can be created in it.

    Raises:
        ConfigError: it is not writable.
        OSError: the storage fails.
    """
    root = catalog.root_of_job()
    return _writable(root, "spec.checkpoint.url" if isinstance(root, ObjectPath) else "spec.checkpoint")


def _writable(folder: Location, field: str) -> Location:
    """Return a folder after it was checked that files can be created in it; `field` names it in errors."""
    if isinstance(folder, ObjectPath):
        _check_url(folder, field)
    else:
        _check_writable(folder, field)
    return folder


def _check_writable(folder: Path, field: str) -> None:
    """Make a folder if it does not exist, and check that files can be created in it.

    Raises:
        ConfigError: it is not writable; `field` is the field of the spec that names it.
        OSError: the storage fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The folder may be another user's, or the volume may be mounted read-only.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # A full volume costs the files that do not fit; an unavailable one may be back after a restart.
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and folder.is_dir():
            return
        if error.errno not in _NOT_WRITABLE:
            raise
        raise ConfigError(
            f"{field}: {folder} cannot be written to ({error.strerror}); choose a volume that user {os.getuid()} may "
            "write to"
        ) from error


def _check_url(root: ObjectPath, field: str) -> None:
    """Check that objects can be created in a folder of an object store, listed and removed; wait for one that is down.

    Raises:
        ConfigError: the store refuses.
        ObjectStoreUnavailable: the store does not answer.
    """
    probe, began = root / f".writable-{os.environ.get('RANK', '0')}", time.monotonic()
    try:
        while True:
            try:
                probe.write_bytes(b"")
                root.is_dir()
                probe.unlink(missing_ok=True)
                return
            except ObjectStoreUnavailable as error:
                # Restarts are limited, and would be used up in the first minutes of an outage.
                if time.monotonic() - began > STORE_SECONDS:
                    raise
                log.logger.warning("the object store does not answer; it is tried again: %s", error.strerror)
                time.sleep(STORE_PAUSE_SECONDS)
    except ObjectStoreRefused as error:
        raise ConfigError(
            f"{field}: {root} cannot be used ({error.strerror}); correct the bucket, or the credentials "
            "and their permissions to get, put, list and delete objects"
        ) from error


def _log_setup(config: RunConfig, world: World, trainer: Trainer, samples: Samples) -> None:
    """Log the size of the model, the data set, and the layout of the ranks."""
    parameters, trained = parameter_count(config, samples), parameter_count(config, samples, trained=True)
    adapters = f" ({trained:,} of them trained)" if trained < parameters else ""
    log.info(
        f"{parameters:,} parameters{adapters}, {samples}, {world.size} ranks on {world.device.type}: {config.mesh}",
        parameters=parameters,
        trainedParameters=trained,
        samples=trainer.batches.train_samples,
        evalSamples=trainer.batches.eval_samples,
        worldSize=world.size,
        device=world.device.type,
        precision=config.precision,
        threads=torch.get_num_threads(),
    )
