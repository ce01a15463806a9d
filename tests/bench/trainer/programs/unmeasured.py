"""The built-in trainer without metrics and samples of its steps. No observer receives its reports."""

from tests.bench.trainer.pace import Pace
from trainyard.config import RunConfig
from trainyard_trainer.data.windows import Windows
from trainyard_trainer.runtime.allocator import set_memory_reuse
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer


def train(config: RunConfig, world: World, samples: Windows, pace: Pace) -> None:
    set_memory_reuse(keep=True)
    trainer = Trainer(config, world, samples)
    trainer.initialize()
    trainer.observers.append(pace)
    pace.start()
    trainer.run()
