"""One process of `bench_trainer`: the built-in trainer and a loop written by hand, in turns."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.bench.bench_trainer import Case
from trainyard.job import TrainingJob
from trainyard.resolve import RunConfig, resolve
from trainyard_trainer import log
from trainyard_trainer.data import TokenFile, Windows, prepare_tokens
from trainyard_trainer.metrics import Metrics
from trainyard_trainer.model import Gpt
from trainyard_trainer.train import Trainer
from trainyard_trainer.world import World

LOG_EVERY = 10


def main(case: Case) -> None:
    world = World.from_environment()
    config = make_config(case)
    tokens = prepare_tokens(config)
    world.join()
    log.logger.disabled = True
    trainer = trainer_turn(config, world, tokens)
    plain = plain_turn(case, config, world, tokens)
    for turn in (trainer, plain):  # warm up
        turn(case.steps)
    pairs = []
    for number in range(case.pairs):
        order = (trainer, plain) if number % 2 == 0 else (plain, trainer)
        speed = {turn: tokens_per_second(turn, case, world) for turn in order}
        pairs.append((speed[trainer], speed[plain]))
    if world.rank == 0:
        print(json.dumps(pairs), flush=True)
    world.barrier()
    os._exit(0)


def tokens_per_second(turn: Callable[[int], None], case: Case, world: World) -> float:
    world.barrier()
    began = time.perf_counter()
    turn(case.steps)
    world.barrier()
    return case.steps * case.global_batch * case.sequence_length / (time.perf_counter() - began)


def make_config(case: Case) -> RunConfig:
    trainer = {
        "model": {"name": "gpt", "preset": case.preset},
        "data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": case.sequence_length},
        "batch": {"global": case.global_batch},
        "stop": {"steps": 1_000_000},
        "logEverySteps": LOG_EVERY,
    }
    spec = {"workers": {"replicas": case.processes}, "trainer": trainer}
    return resolve(TrainingJob.from_dict({"metadata": {"name": "bench"}, "spec": spec}))


def trainer_turn(config: RunConfig, world: World, tokens: TokenFile) -> Callable[[int], None]:
    """The built-in trainer as a worker runs it, with its metrics and reports."""
    trainer = Trainer(config, world, Windows(tokens, config.gpt.sequence_length))
    metrics = Metrics(config, world.rank)

    def turn(steps: int) -> None:
        trainer.total_steps = trainer.step + steps
        trainer.run(metrics, metrics.report, metrics.evaluated)

    return turn


def plain_turn(case: Case, config: RunConfig, world: World, tokens: TokenFile) -> Callable[[int], None]:
    """What one would write without a framework."""
    length, batch = config.gpt.sequence_length, case.global_batch // world.size
    data = np.memmap(tokens.path, dtype=tokens.dtype, mode="r")
    generator = np.random.default_rng(world.rank)
    torch.manual_seed(0)
    model: torch.nn.Module = Gpt(config.gpt)
    if world.size > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    done = 0
    seen: list[float] = []

    def turn(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            starts = generator.integers(0, len(data) - length - 1, batch)
            rows = np.stack([data[start : start + length + 1] for start in starts])
            ids = torch.from_numpy(rows.astype(np.int64))
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done % LOG_EVERY == 0:
                seen.append(loss.item())

    return turn


def parse(text: str) -> Case:
    fields: dict[str, Any] = json.loads(text)
    return Case(**fields)


if __name__ == "__main__":
    main(parse(sys.argv[1]))
