"""The built-in trainer as a worker runs it, with its metrics, which are read now and then, and its reports."""

import threading
import time

from prometheus_client import generate_latest

from tests.bench.trainer.pace import Pace
from trainyard.config import RunConfig
from trainyard_trainer.data.tokens import TokenFile, Windows
from trainyard_trainer.metrics.breakdown import Breakdown
from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.runtime.allocator import set_memory_reuse
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer

SCRAPES = 5.0
"""Seconds from one to the next: more often than is usual."""


def train(config: RunConfig, world: World, tokens: TokenFile, pace: Pace) -> None:
    set_memory_reuse(keep=True)
    trainer = Trainer(config, world, Windows(tokens, config.trainer.data.sequence_length))
    metrics = MetricsExporter(config, world, attempt=1)
    if world.rank == 0:
        trainer.observers.append(Breakdown(metrics.broken_down, world.device, None))
        threading.Thread(target=_scrape, args=(metrics,), daemon=True).start()
    trainer.observers += [metrics, pace]
    pace.start()
    trainer.run()


def _scrape(metrics: MetricsExporter) -> None:
    while True:
        generate_latest(metrics.registry)
        time.sleep(SCRAPES)
