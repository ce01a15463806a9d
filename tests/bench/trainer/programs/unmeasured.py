"""The built-in trainer without metrics and samples of its steps. No observer receives its reports."""

from tests.bench.trainer.pace import Pace
from trainyard.config import RunConfig
from trainyard_trainer.data.tokens import TokenFile, Windows
from trainyard_trainer.runtime.allocator import set_memory_reuse
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer


def train(config: RunConfig, world: World, tokens: TokenFile, pace: Pace) -> None:
    set_memory_reuse(keep=True)
    trainer = Trainer(config, world, Windows(tokens, config.trainer.data.sequence_length))
    trainer.observers.append(pace)
    pace.start()
    trainer.run()
