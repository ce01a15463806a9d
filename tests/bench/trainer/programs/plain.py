"""What one would write without a framework."""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.bench.trainer.cases import LOG_EVERY, local_batch
from tests.bench.trainer.pace import Pace
from trainyard.config import RunConfig
from trainyard.models.decoder_sizes import DecoderConfig
from trainyard_trainer.data.windows import Windows
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.runtime.world import World


def train(config: RunConfig, world: World, samples: Windows, pace: Pace) -> None:
    batch = local_batch(config, world.size)
    generator = np.random.default_rng(world.rank)
    torch.manual_seed(0)
    model: torch.nn.Module = Llama(cast(DecoderConfig, config.model))
    if world.size > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    done = 0
    seen: list[float] = []
    pace.start()
    while True:
        inputs, targets, _ = samples.read(generator.integers(0, samples.count, batch), 0, 1)
        logits = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        if done % LOG_EVERY == 0:
            seen.append(loss.item())
        pace.step_done()
