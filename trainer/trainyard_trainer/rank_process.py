"""One training process (rank), forked by the launcher; `torchrun -m trainyard_trainer.rank_process` works, too."""

import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from trainyard.config import RunConfig
from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.termination import TerminationMessage
from trainyard_trainer.checkpoint.catalog import root_of_job
from trainyard_trainer.checkpoint.shared_folder import check_shared
from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.optim.guard import GradientGuard
from trainyard_trainer.parameter_server import ParameterServer
from trainyard_trainer.run import Run, build_run
from trainyard_trainer.runtime import heartbeat, log, process_exit
from trainyard_trainer.runtime.allocator import set_memory_reuse
from trainyard_trainer.runtime.errors import ConfigError, FinalCheckpointFailed
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.world import World
from trainyard_trainer.weights.initial import with_initial_sizes


def main() -> None:
    """Run one rank of a group. Returns after success; a failure ends the process."""
    faulthandler.enable()  # prints the stacks of all threads when compiled code crashes
    faulthandler.register(signal.SIGUSR1, heartbeat.stack_file())  # prints them on request, should a rank hang
    process = RankProcess()
    process_exit.handle_stop_signals(process.stop)
    try:
        process.run()
    except Exception as error:  # noqa: BLE001 (every error becomes the termination message of this pod)
        process_exit.exit_with_error(error, process.rank, process.step())


class RankProcess:
    """One process from start to end: a rank that trains, or a parameter server."""

    def __init__(self) -> None:
        self.rank = int(os.environ["RANK"])
        self._attempt = launcher_protocol.attempt_number()
        self._run: Run | None = None
        self._server: ParameterServer | None = None
        self._saves = False

    def step(self) -> int | None:
        """Return the optimizer steps done; None before the training."""
        if self._run is not None:
            return self._run.trainer.step
        return None if self._server is None else self._server.step

    def stop(self, received: signal.Signals) -> None:
        """Handle a signal to stop: on SIGTERM a run with checkpoints first saves what it has done."""
        if received == signal.SIGTERM and self._saves:
            if self._run is not None and self._run.saver is not None:
                self._run.saver.request_stop()
                return
            # A parameter server saves for its workers, which end it afterwards.
            if self._server is not None:
                return
        self._exit_stopped(received)

    def _exit_stopped(self, received: signal.Signals, problem: str = "") -> NoReturn:
        """End the process at once, because of a signal. `problem`: why its state is not saved."""
        message = f"rank {self.rank} was told to stop by {received.name}" + (problem and f"; {problem}")
        process_exit.write_termination_message(
            TerminationMessage(rank=self.rank, exception=received.name, message=message, step=self.step())
        )
        process_exit.exit_now(128 + received)

    def run(self) -> None:
        """Read the configuration, and train or serve parameters until the run ends.

        Raises:
            ConfigError: the job cannot work as it is configured.
            BadSteps: spec.health.badSteps demands that the attempt fails.
            FinalCheckpointFailed: the training is complete, but could not be saved.
        """
        config = read_config()
        self._saves = config.checkpoint is not None
        log.configure(config.job, self._attempt, self.rank)
        world = World.from_environment(config.servers)
        if world.size != config.world_size:
            raise ConfigError(
                f"spec.workers: the configuration is for {config.world_size} processes, but {world.size} were "
                "started; start as many as spec.workers asks for"
            )
        # A parameter server needs no model, and perhaps has no volume with its weights.
        if self.rank < world.size:
            config = with_initial_sizes(config)
        exporter = None
        if world.local_rank == 0:
            exporter = MetricsExporter(config, world, self._attempt)
            exporter.serve(launcher_protocol.port_number(constants.ENV_METRICS_PORT, constants.METRICS_PORT))
        if world.device.type == "cpu":
            set_memory_reuse(keep=config.memory_use.keep_freed)
        if self.rank >= world.size:
            self._serve(config, world, exporter)
        else:
            self._train(config, world, exporter)
        heartbeat.beat(Phase.SHUTDOWN)
        world.barrier()
        if self._run is not None and self._run.trainer.interrupted:
            self._exit_stopped(signal.SIGTERM)

    def _serve(self, config: RunConfig, world: World, exporter: MetricsExporter | None) -> None:
        """Be the parameter server until the workers are done.

        Raises:
            ConfigError: the workers write their checkpoints to another volume.
        """
        world.init_process_group(
            saves=self._saves,
            patience=config.health.startup_timeout_seconds,
            hang_timeout=config.health.hang_timeout_seconds,
        )
        if self._saves:
            check_shared(root_of_job(), world)
        guard = GradientGuard(config.health.bad_steps, agreement=None)
        self._server = ParameterServer(config.trainer.optimizer, world, guard)
        heartbeat.start(self._server.step, config.health.hang_timeout_seconds)
        while self._server.serve():
            if exporter is not None:
                exporter.after_step(self._server.step)

    def _train(self, config: RunConfig, world: World, exporter: MetricsExporter | None) -> None:
        """Train, and leave the final progress as the termination message (rank 0)."""
        self._run = build_run(config, world, self._attempt, exporter)
        trainer = self._run.trainer
        try:
            self._run.train()
        except FinalCheckpointFailed as error:
            # Training is complete, so the job fails: a restart would only repeat its last steps.
            if self._run.saver is None or not self._run.saver.stopping:
                raise
            # The pod was told to stop: it ends as it would otherwise, and the next attempt repeats the steps.
            print(f"error: rank {self.rank}: {error}", file=sys.stderr)
            self._exit_stopped(signal.SIGTERM, str(error))
        if self.rank == 0 and not trainer.interrupted:
            process_exit.write_termination_message(
                TerminationMessage(
                    rank=0,
                    message=trainer.stopped_because,
                    step=self.step(),
                    progress=self._run.final_progress(),
                )
            )


def read_config() -> RunConfig:
    """Read the configuration of this job.

    Raises:
        ConfigError: the file is missing or is not a configuration.
    """
    path = Path(os.environ.get(constants.ENV_CONFIG) or Path(constants.CONFIG_FOLDER, constants.CONFIG_FILE))
    try:
        # A later version of the operator, which adds fields, keeps the image that was accepted.
        return RunConfig.model_validate_json(path.read_bytes(), extra="ignore")
    except OSError as error:
        raise ConfigError(
            f"{constants.ENV_CONFIG}: {path} cannot be read ({error.strerror}); set it to a configuration that "
            "trainyard.resolve has written, as the operator does"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: {field}: {first['msg']}; use the same version of the trainer and the operator"
        ) from error


if __name__ == "__main__":
    main()
    process_exit.exit_now(0)
