"""The built-in trainer as a worker runs it, with its metrics and reports."""

from tests.bench.trainer.pace import Pace
from trainyard.config import RunConfig
from trainyard_trainer.allocator import keep_freed_memory
from trainyard_trainer.data import TokenFile, Windows
from trainyard_trainer.metrics import Metrics
from trainyard_trainer.train import Trainer
from trainyard_trainer.world import World


def train(config: RunConfig, world: World, tokens: TokenFile, pace: Pace) -> None:
    keep_freed_memory()
    trainer = Trainer(config, world, Windows(tokens, config.gpt.sequence_length))
    metrics = _PacedMetrics(config, world, pace)
    pace.start()
    trainer.run(metrics, metrics.report, metrics.evaluated)


class _PacedMetrics(Metrics):
    """Metrics are the last thing that the trainer does in a step."""

    def __init__(self, config: RunConfig, world: World, pace: Pace) -> None:
        super().__init__(config, world, attempt=1)
        self._pace = pace

    def step(self, samples: int = 0) -> None:
        super().step(samples)
        self._pace.step_done()
