"""One rank of torchtitan, as a program of an environment of its own: it needs other versions of libraries.

    python torchtitan_rank.py ADDRESS STEPS SETTINGS

torchtitan is written for GPUs; what it asks them for and a CPU does not have is answered here, nothing else is changed.
Only torch and torchtitan are imported, since this environment has nothing of the repository.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Client
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
from torch.distributed.fsdp import FSDPModule

torch._utils._get_available_device_type = lambda: "cpu"

from torchtitan.components import metrics  # noqa: E402
from torchtitan.components.checkpoint import CheckpointManager  # noqa: E402
from torchtitan.components.dataloader import BaseDataLoader  # noqa: E402
from torchtitan.components.loss import CrossEntropyLoss  # noqa: E402
from torchtitan.components.metrics import MetricsProcessor  # noqa: E402
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw  # noqa: E402
from torchtitan.components.tokenizer import BaseTokenizer  # noqa: E402
from torchtitan.config import ParallelismConfig, TrainingConfig  # noqa: E402
from torchtitan.config.configs import DebugConfig  # noqa: E402
from torchtitan.models import llama3  # noqa: E402
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm  # noqa: E402
from torchtitan.models.common.attention import ScaledDotProductAttention  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

NO_MEMORY = SimpleNamespace(**dict.fromkeys(
    ("max_active_gib", "max_active_pct", "max_reserved_gib", "max_reserved_pct", "num_alloc_retries", "num_ooms"), 0
))  # fmt: skip


class NoMonitor:
    """Memory of a GPU that is not there."""

    device_name = "CPU"

    def get_peak_stats(self) -> Any:
        return NO_MEMORY

    def reset_peak_stats(self) -> None:
        pass


class Tokens(BaseDataLoader):  # type: ignore[misc]
    """The same random tokens again and again: to read them costs as good as nothing."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):  # type: ignore[misc]
        vocabulary: int = 0

    def __init__(self, config: Config, *, seq_len: int, local_batch_size: int, **_: Any) -> None:
        tokens = torch.randint(0, config.vocabulary, (local_batch_size, seq_len + 1))
        self._inputs, self._labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield {"input": self._inputs}, self._labels

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class NoTokenizer(BaseTokenizer):  # type: ignore[misc]
    """What turns text into tokens, which there is none of."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):  # type: ignore[misc]
        pass

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__()

    def encode(self, *_: Any, **__: Any) -> list[int]:
        return []

    def decode(self, *_: Any, **__: Any) -> str:
        return ""

    def get_vocab_size(self) -> int:
        return 0


def make_config(settings: dict[str, Any]) -> Trainer.Config:
    """Return the configuration of a run of the same model, batch, optimizer and layout as the trainer's."""
    size, layout = settings["model"], settings["layout"]
    llama3.get_attention_config = lambda _backend: ScaledDotProductAttention.Config()
    model = llama3.Llama3Model.Config(
        dim=size["dim"],
        vocab_size=size["vocabulary"],
        tok_embeddings=Embedding.Config(
            num_embeddings=size["vocabulary"], embedding_dim=size["dim"], param_init=llama3._EMBEDDING_INIT
        ),
        norm=RMSNorm.Config(normalized_shape=size["dim"], param_init=llama3._NORM_INIT),
        lm_head=Linear.Config(
            in_features=size["dim"], out_features=size["vocabulary"], param_init=llama3._output_linear_init(size["dim"])
        ),
        layers=llama3._build_llama3_layers(
            n_layers=size["layers"],
            dim=size["dim"],
            n_heads=size["heads"],
            n_kv_heads=size["kvHeads"],
            hidden_dim=size["ffnDim"],
            rope=ComplexRoPE.Config(
                dim=size["dim"] // size["heads"], max_seq_len=settings["sequence"], theta=10_000, scaling="none"
            ),
            attn_backend="sdpa",
        ),
    )
    spec = replace(llama3.model_registry("debugmodel"), model=model)
    return Trainer.Config(
        model_spec=spec,
        loss=CrossEntropyLoss.Config(global_vocab_size=size["vocabulary"]),
        tokenizer=NoTokenizer.Config(),
        dataloader=Tokens.Config(vocabulary=size["vocabulary"]),
        optimizer=default_adamw(lr=3e-4),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=0),
        training=TrainingConfig(
            local_batch_size=settings["batch"],
            seq_len=settings["sequence"],
            steps=1_000_000,
            disable_cuda_graphs=True,
            mixed_precision_param="float32",
        ),
        parallelism=ParallelismConfig(
            data_parallel_replicate_degree=layout["replicate"],
            data_parallel_shard_degree=layout["shard"],
            tensor_parallel_degree=layout["tensor"],
            pipeline_parallel_degree=layout["pipeline"],
            pipeline_parallel_schedule="1F1B",
            pipeline_parallel_microbatch_size=settings["micro"],
            pipeline_parallel_first_stage_less_layers=0,
            pipeline_parallel_last_stage_less_layers=0,
        ),
        metrics=MetricsProcessor.Config(log_freq=10),
        checkpoint=CheckpointManager.Config(enable=False),
        activation_checkpoint=None,
        debug=DebugConfig(enable_structured_logging=False),
        dump_folder=settings["folder"],
    )


def main(address: str, steps: int, settings: dict[str, Any]) -> None:
    """Train when asked to, a number of steps each time, and answer with when they began and ended; until killed."""
    metrics.build_device_memory_monitor = NoMonitor
    torch.set_num_threads(1)
    trainer = Trainer(make_config(settings))
    for module in (module for part in trainer.model_parts for module in part.modules()):
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no operation that sums and scales
    batches = trainer.batch_generator(trainer.dataloader)
    with Client(address) as parent:
        parent.send(None)
        while True:
            parent.recv()
            began = time.perf_counter()
            for _ in range(steps):
                trainer.step += 1
                trainer.train_step(batches)
            parent.send((began, time.perf_counter()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
