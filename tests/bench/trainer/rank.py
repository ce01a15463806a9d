"""One process of a program."""

import os
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Protocol

import torch

from tests.bench.trainer.cases import Case, Program
from tests.bench.trainer.pace import Pace
from trainyard.config import RunConfig
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.data.windows import Windows
from trainyard_trainer.optim.guard import GradientGuard
from trainyard_trainer.parameter_server import ParameterServer
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.world import World


class Train(Protocol):
    """Trains for ever, at a pace."""

    def __call__(self, config: RunConfig, world: World, samples: Windows, pace: Pace) -> None: ...


def main(case: Case, program: Program, rank: int, port: int, cache: str, parent: Connection) -> None:
    """Train when asked to, until killed."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(program.processes + program.servers),
        LOCAL_WORLD_SIZE=str(program.processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS=str(program.threads),
        TRAINYARD_CACHE=cache,
    )
    torch.set_num_threads(program.threads)
    config = case.config(program)
    samples = load_samples(config)
    assert isinstance(samples, Windows)
    world = World.from_environment(program.servers)
    world.init_process_group()
    log.logger.disabled = True
    if rank >= program.processes:
        server = ParameterServer(
            config.trainer.optimizer, world, GradientGuard(config.health.bad_steps, agreement=None)
        )
        with suppress(RuntimeError):  # when its turns are over a worker is killed
            while server.serve():
                pass
        return
    # Imported here, since the frameworks need not be installed.
    train: Train = import_module(f"tests.bench.trainer.programs.{program.kind}").train
    train(config, world, samples, Pace(parent, case.steps))
