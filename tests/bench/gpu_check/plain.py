"""A plain training loop with the same model and kernels as the trainer's, and nothing else.

    python -m tests.bench.gpu_check.plain CONFIG WARMUP STEPS RANK RANKS PORT

fully_shard for each block in bfloat16, torch.compile, fused AdamW, clipping, tokens that are already on the device; the
device is waited for at the beginning and at the end only. Rank 0 prints tokens per second of all ranks, as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from trainyard.config import RunConfig
from trainyard.models.decoder_sizes import DecoderConfig
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.runtime.device_settings import configure_device


def main(config: RunConfig, warmup: int, steps: int) -> None:
    """Train, and print the speed."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        configure_device(device, bfloat16=True)
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    model = make_model(config, device, ranks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    length, batch = config.trainer.data.sequence_length, config.accumulation * config.micro_batch
    ids = torch.randint(0, 256, (batch, length + 1), device=device)
    began = 0.0
    for step in range(warmup + steps):
        if step == warmup:
            wait(device)
            began = time.perf_counter()
        for micro in torch.split(ids, config.micro_batch):
            logits = model(micro[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), micro[:, 1:].flatten()) / config.accumulation
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    wait(device)
    if rank == 0:
        print(json.dumps(steps * batch * length * ranks / (time.perf_counter() - began)))


def make_model(config: RunConfig, device: torch.device, ranks: int) -> Llama:
    """Return the trainer's model with compiled, sharded blocks."""
    with device:
        model = Llama(cast(DecoderConfig, config.model))
    model.set_positions(0, config.trainer.data.sequence_length, device)
    mesh = init_device_mesh(device.type, (ranks,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.layers():
        if config.trainer.compile:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    path, warmup, steps, rank, ranks, port = sys.argv[1:]
    os.environ.update(RANK=rank, WORLD_SIZE=ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    main(RunConfig.model_validate_json(Path(path).read_bytes()), int(warmup), int(steps))
    sys.stdout.flush()
    os._exit(0)
