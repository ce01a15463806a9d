"""Builds everything that takes part in the training of one rank: the only place where it is wired together."""

from dataclasses import dataclass
from pathlib import Path

import torch

from trainyard.config import RunConfig
from trainyard.protocol.progress import Progress
from trainyard.run_record import DataRecord, RunRecord
from trainyard_trainer.checkpoint.run_folder import RunFolder, RunRecorder, describe_attempt
from trainyard_trainer.checkpoint.saver import Saver
from trainyard_trainer.checkpoint.shared_folder import check_shared
from trainyard_trainer.checkpoint.writable import check_writable, writable_root
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.metrics.breakdown import Breakdown
from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.metrics.preparation_log import PreparationLog
from trainyard_trainer.metrics.profiling import Profiler
from trainyard_trainer.metrics.trackers import Trackers
from trainyard_trainer.parallel.parallelize import parameter_count
from trainyard_trainer.parameter_server import RemoteUpdate
from trainyard_trainer.plugin import Plugin, load_plugin, prepare_samples
from trainyard_trainer.privacy.budget import Budget
from trainyard_trainer.progress_log import ProgressLog
from trainyard_trainer.record.recorder import CheckpointRecorder
from trainyard_trainer.reports import Reports
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.device_settings import configure_device
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import Location, location
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer
from trainyard_trainer.weights.final_export import FinalExport
from trainyard_trainer.weights.initial import base_of, check_tokenizer, initial_record, initial_weights_digest


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


@dataclass(frozen=True)
class _Inputs:
    """What a rank reads before it joins the others."""

    plugin: Plugin
    samples: Samples
    root: Location | None
    """Folder of the job's checkpoints. None without spec.checkpoint."""
    folder: RunFolder | None
    """Record and tokenizer of the run in that folder."""
    origin: RunRecord | None
    """The run that this attempt resumes, or else the one that has written the weights with which it begins."""

    @property
    def volume(self) -> Path | None:
        """The folder of the checkpoints if tools can read files in it: not that of an object store."""
        return self.root if isinstance(self.root, Path) else None


@dataclass(frozen=True)
class _Persistence:
    """What writes the state and the results of a run; without spec.checkpoint nothing does."""

    run: str
    """Id of the run."""
    saver: Saver | None = None
    export: FinalExport | None = None
    reports: Reports | None = None


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
    inputs = _read_inputs(config, exporter)
    _join(config, world)
    if inputs.root is not None:
        check_shared(inputs.root, world)
    trainer = _build_trainer(config, world, inputs)
    record = _describe(config, inputs, trainer, attempt)
    if inputs.folder is not None:
        inputs.folder.check(record, announce=world.rank == 0, evaluates=config.trainer.task == "evaluate")
    _log_setup(config, world, trainer, inputs.samples)
    _observe_steps(config, world, inputs, trainer, attempt, exporter)
    persistence = _restore(config, world, inputs, trainer, record)
    progress_log, trackers = None, None
    if world.rank == 0:
        progress_log, trackers = ProgressLog(trainer.state, attempt), Trackers(config, inputs.volume, persistence.run)
        trainer.observers += [progress_log, trackers]
    return Run(trainer, persistence.saver, progress_log, trackers, exporter, persistence.export, persistence.reports)


def _read_inputs(config: RunConfig, exporter: MetricsExporter | None) -> _Inputs:
    """Check that the folders of the run can be written to, and prepare the data."""
    plugin = load_plugin(config)
    root = None if config.checkpoint is None else writable_root()
    export = config.trainer.export
    if root is not None and export is not None and export.path is not None:
        check_writable(location(export.path), "spec.trainer.export.path")
    folder = None if root is None else RunFolder(root)
    origin = (None if folder is None else folder.existing) or initial_record(config)
    tokenizer = None if folder is None else folder.tokenizer
    trained_on = () if origin is None else origin.data.sources
    samples = prepare_samples(config, plugin, PreparationLog(exporter), tokenizer, trained_on)
    return _Inputs(plugin, samples, root, folder, origin)


def _join(config: RunConfig, world: World) -> None:
    """Configure the device and form the process group. Data are prepared on all processors before CUDA has threads."""
    configure_device(world.device, bfloat16=config.precision == "bfloat16")
    world.init_process_group(
        saves=config.checkpoint is not None,
        patience=config.health.startup_timeout_seconds,
        hang_timeout=config.health.hang_timeout_seconds,
    )


def _build_trainer(config: RunConfig, world: World, inputs: _Inputs) -> Trainer:
    """Build the model and what trains it, after a check that its data are right, and the same on all ranks."""
    if config.trainer.model.from_ is not None and (inputs.folder is None or inputs.folder.run is None):
        check_tokenizer(config, inputs.samples.tokenizer)
    if not world.all_equal(inputs.samples.fingerprint):
        raise ConfigError(
            "spec.trainer.data: the workers do not hold the same data; mount the same volume into each of them"
        )
    trainer = Trainer(config, world, inputs.samples, inputs.plugin)
    if not world.all_equal(trainer.batches.excluded.identity or 0):
        raise ConfigError(
            "spec.trainer.data.exclude.file: the workers do not see the same file; mount the same volume into each of "
            "them"
        )
    return trainer


def _describe(config: RunConfig, inputs: _Inputs, trainer: Trainer, attempt: int) -> RunRecord:
    """Return the record of a run that would begin with this attempt."""
    samples = inputs.samples
    data = DataRecord(
        fingerprint=samples.fingerprint,
        samples=samples.count,
        eval_samples=trainer.batches.eval_samples,
        sources=tuple(samples.sources),
        exclusion=trainer.batches.excluded.identity,
    )
    return describe_attempt(config, data, samples.tokenizer, attempt).replace(base=base_of(config))


def _observe_steps(
    config: RunConfig,
    world: World,
    inputs: _Inputs,
    trainer: Trainer,
    attempt: int,
    exporter: MetricsExporter | None,
) -> None:
    """Add the observers that measure steps. Those that trace them come first, so that no trace contains the others."""
    profiler = None
    if inputs.volume is not None:
        profiler = Profiler(config.trainer.profile, inputs.volume, world.rank, attempt, world.device)
        trainer.observers.append(profiler)
    if exporter is not None and world.rank == 0:
        trainer.observers.append(Breakdown(exporter.broken_down, world.device, profiler))
    if exporter is not None:
        trainer.observers.append(exporter)


def _restore(config: RunConfig, world: World, inputs: _Inputs, trainer: Trainer, record: RunRecord) -> _Persistence:
    """Give the model the state of the newest checkpoint, or its initial one, and build what saves it from now on.

    Args:
        config: configuration of the run.
        world: the ranks.
        inputs: the data and the folder of the run.
        trainer: the model and what trains it.
        record: the run if it begins with this attempt.
    """
    root, folder = inputs.root, inputs.folder
    if config.checkpoint is None or root is None or folder is None:
        trainer.initialize()
        return _Persistence(record.id)
    remote_save = trainer.update.save if isinstance(trainer.update, RemoteUpdate) else None
    saver = Saver(config.checkpoint, root, world, trainer.state, trainer.observers, trainer.agreement, remote_save)
    trainer.state.run = folder.run
    if config.trainer.task == "evaluate":
        # An evaluation changes nothing of the run whose model it evaluates.
        trainer.load_weights(saver)
        known = folder.existing
        trainer.state.run = run = (known or record).id
        return _Persistence(run, saver, reports=Reports(config, root, known or inputs.origin, inputs.samples))
    trainer.resume(saver, _budget(config, trainer, inputs, world))
    record = folder.record(record, trainer.step, trainer.state.parent)
    trainer.state.run = record.id
    if world.rank == 0:
        initial = initial_weights_digest(config) if saver.resumed_step is None else None
        recorder = CheckpointRecorder(root, record, config, world.device, saver.resumed_step, initial)
        saver.record = RunRecorder(folder, record, inputs.samples.tokenizer)
        trainer.observers += [saver.record, recorder]
    export = None
    if config.trainer.export is not None:
        key = config.trainer.signing_key_file
        export = FinalExport(config.trainer.export, root, world, stops=lambda: saver.told_to_stop, key=key)
    return _Persistence(record.id, saver, export, Reports(config, root, record, inputs.samples))


def _budget(config: RunConfig, trainer: Trainer, inputs: _Inputs, world: World) -> Budget | None:
    """Return the budget of a private run."""
    if config.trainer.privacy is None or inputs.folder is None:
        return None
    identity = (inputs.samples.fingerprint, trainer.batches.excluded.identity)
    return Budget(config, trainer.batches.train_samples, identity, inputs.folder, world)


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
