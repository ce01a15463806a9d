"""One training process (rank), forked by the launcher; `torchrun -m trainyard_trainer.rank_process` works, too."""

import faulthandler
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from trainyard.config import RunConfig
from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.progress import Progress
from trainyard.protocol.termination import TerminationMessage
from trainyard.resource.checkpoint import CheckpointConfig
from trainyard_trainer.checkpoint.saver import Saver
from trainyard_trainer.data.samples import prepare
from trainyard_trainer.metrics.breakdown import Breakdown
from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.metrics.profiling import Profiler
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.metrics.trackers import Trackers
from trainyard_trainer.optim.guard import GradientGuard
from trainyard_trainer.parameter_server import ParameterServer, RemoteUpdate
from trainyard_trainer.runtime import heartbeat, log, process_exit
from trainyard_trainer.runtime.allocator import keep_freed_memory
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer


def main() -> None:
    """Train, as one of the ranks of a group. Returns after success; a failure ends the process."""
    faulthandler.enable()  # says where each thread was when compiled code crashes
    faulthandler.register(signal.SIGUSR1, heartbeat.stack_file())  # says where each thread is, should a rank hang
    process = RankProcess()
    process_exit.handle_stop_signals(process.stop)
    try:
        process.run()
    except Exception as error:  # noqa: BLE001 (the last word of this process, whatever the error is)
        process_exit.exit_with_error(error, process.rank, process.step())


class RankProcess(Observer):
    """What one process does from its start to its end."""

    def __init__(self) -> None:
        self.rank = int(os.environ["RANK"])
        self.attempt = int(os.environ.get(launcher_protocol.ENV_ATTEMPT, "0"))
        self.config: RunConfig | None = None
        self.metrics: MetricsExporter | None = None
        self.trainer: Trainer | None = None
        self.server: ParameterServer | None = None
        self.trackers: Trackers | None = None
        self.profiler: Profiler | None = None
        self.last: Progress | None = None

    def step(self) -> int | None:
        """Optimizer steps done; None before the training."""
        acting = self.trainer or self.server
        return acting.step if acting is not None else None

    def stop(self, received: signal.Signals) -> None:
        """End, having been told to. The training first saves what it has done, if it is to be saved at all."""
        if received == signal.SIGTERM and self.config is not None and self.config.checkpoint is not None:
            if self.trainer is not None and self.trainer.saver is not None:
                self.trainer.saver.ask_to_stop()
                return
            if self.server is not None:
                return  # its workers end it, once it has saved for them
        self.leave(received)

    def leave(self, received: signal.Signals) -> NoReturn:
        """End at once."""
        message = f"rank {self.rank} was told to stop by {received.name}"
        word = TerminationMessage(rank=self.rank, exception=received.name, message=message, step=self.step())
        process_exit.write_termination_message(word)
        process_exit.exit_now(128 + received)

    def run(self) -> None:
        """Take part in the run, as one of those that train or as their parameter server."""
        config = self.config = read_config()
        log.configure(config.job, self.attempt, self.rank)
        world = World.from_environment(config.servers)
        if world.size != config.world_size:
            raise ConfigError(
                f"spec.workers: the configuration is for {config.world_size} processes, but {world.size} were "
                "started; start as many as spec.workers asks for"
            )
        if world.local_rank == 0:
            self.metrics = MetricsExporter(config, world, self.attempt)
            self.metrics.serve(int(os.environ.get(constants.ENV_METRICS_PORT) or constants.METRICS_PORT))
        if world.device.type == "cpu":
            keep_freed_memory()
        if self.rank >= world.size:
            self._serve(config, world)
        else:
            self._train(config, world)
        heartbeat.beat(Phase.SHUTDOWN)
        world.barrier()
        if self.trainer is not None and self.trainer.told_to_stop:
            self.leave(signal.SIGTERM)

    def _serve(self, config: RunConfig, world: World) -> None:
        world.init_process_group(saves=config.checkpoint is not None)
        self.server = ParameterServer(config.trainer.optimizer, world, GradientGuard(config.health.bad_steps, bool))
        heartbeat.start(self.server.step, config.health.hang_timeout_seconds)
        while self.server.serve():
            if self.metrics is not None:
                self.metrics.after_step(self.server.step)

    def _train(self, config: RunConfig, world: World) -> None:
        """Prepare, train, and say how it went."""
        samples = prepare(config)
        world.init_process_group(saves=config.checkpoint is not None)
        if not world.all_equal(samples.fingerprint):
            raise ConfigError(
                "spec.trainer.data: the workers do not hold the same data; mount the same volume into each of them"
            )
        self.trainer = Trainer(config, world, samples)
        if config.checkpoint is not None:
            self._go_on(config.checkpoint, self.trainer)
        self.trainer.observers += self._observers(config, world, self.trainer.step)
        self.trainer.run()
        if self.trackers is not None:
            self.trackers.close()
        if self.rank == 0 and not self.trainer.told_to_stop:
            message = self.trainer.stopped_because or ""
            process_exit.write_termination_message(
                TerminationMessage(rank=0, message=message, step=self.step(), progress=self._final())
            )

    def _observers(self, config: RunConfig, world: World, step: int) -> list[Observer]:
        """Who hears of this rank's steps. Those that trace steps come first, so that they do not trace the others."""
        observers: list[Observer] = [] if self.profiler is None else [self.profiler]
        if self.metrics is not None and self.rank == 0:
            observers.append(Breakdown(self.metrics.broken_down, world.device, self.profiler))
        if self.metrics is not None:
            observers.append(self.metrics)
        if self.rank == 0:
            root = None if config.checkpoint is None else self._root
            self.trackers = Trackers(config, root, self.attempt, resumed=step > 0)
            observers += [self, self.trackers]
        return observers

    @property
    def _root(self) -> Path:
        """The folder of the job on the checkpoint volume."""
        return Path(os.environ.get(constants.ENV_CHECKPOINTS) or constants.CHECKPOINT_MOUNT)

    def _go_on(self, config: CheckpointConfig, trainer: Trainer) -> None:
        """Continue from what is on the checkpoint volume, and save to it."""
        root = self._root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"spec.checkpoint: {root} cannot be written to ({error.strerror}); choose a volume that user "
                f"{os.getuid()} may write to"
            ) from error
        send = trainer.update.save if isinstance(trainer.update, RemoteUpdate) else None
        trainer.go_on(Saver(config, root, trainer.world, self.metrics, send))
        wanted = trainer.config.trainer.profile
        self.profiler = Profiler(wanted, root, self.rank, self.attempt, trainer.world.device)
        if trainer.figures:
            self.last = Progress.model_validate(trainer.figures).replace(attempt=self.attempt)

    def _final(self) -> Progress | None:
        """The figures of the last step."""
        if self.last is None or self.trainer is None:
            return self.last
        strikes, saver = self.trainer.bad_steps, self.trainer.saver
        last = self.last.replace(
            skipped_steps=strikes.skipped or None,
            last_skipped_step=strikes.last,
            rollbacks=strikes.rollbacks or None,
        )
        if saver is None:
            return last
        return last.replace(
            checkpoint_step=saver.step,
            resumed_step=saver.resumed_step,
            checkpoints_damaged=saver.damaged or None,
            checkpoint_failures=saver.failures or None,
        )

    def reported(self, report: StepReport) -> None:
        """Log the figures of a step, and keep them for the last word and for checkpoints (rank 0)."""
        before = self.last
        self.last = report.progress(self.attempt)
        if before is not None:
            self.last = self.last.replace(eval_loss=before.eval_loss, metrics=before.metrics)
        self._remember(self.last)
        log.info(str(report), **self.last.to_dict(), seconds=round(report.seconds, 3))

    def _remember(self, figures: Progress) -> None:
        assert self.trainer is not None
        self.trainer.figures = figures.to_dict()

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """The same for the figures of an evaluation."""
        assert self.last is not None, "a step comes first"
        self.last = self.last.replace(eval_loss=figures["loss"], metrics=dict(figures))
        self._remember(self.last)
        words = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        log.info(f"evaluation after step {step}: {words}", evaluation=figures)


def read_config() -> RunConfig:
    """The configuration of this job.

    Raises:
        ConfigError: the file is missing or is not a configuration.
    """
    path = Path(os.environ.get(constants.ENV_CONFIG) or Path(constants.CONFIG_FOLDER, constants.CONFIG_FILE))
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{constants.ENV_CONFIG}: {path} cannot be read ({error.strerror}); the operator mounts it, and by hand "
            "it is written by trainyard.resolve"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}; trainer and operator must be of one version") from error


if __name__ == "__main__":
    main()
    process_exit.exit_now(0)
