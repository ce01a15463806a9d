"""The Trainer of Lightning: https://lightning.ai/docs/pytorch/stable/common/trainer.html."""

import logging
import warnings
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from tests.bench.trainer.cases import LOG_EVERY, local_batch
from tests.bench.trainer.pace import Pace
from tests.bench.trainer.programs.windows import TransformerWithLoss, WindowDataset
from trainyard.config import RunConfig
from trainyard.models.decoder_sizes import DecoderConfig
from trainyard_trainer.data.windows import Windows
from trainyard_trainer.runtime.world import World


def train(config: RunConfig, world: World, samples: Windows, pace: Pace) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # advice, and deprecations of its own code
    data = WindowDataset(samples)
    loader = DataLoader(data, local_batch(config, world.size), shuffle=True, drop_last=True)
    trainer = Trainer(
        accelerator="cpu",
        devices=world.size,
        strategy=_ddp() if world.size > 1 else "auto",
        max_epochs=-1,
        gradient_clip_val=1.0,
        log_every_n_steps=LOG_EVERY,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_Paced(pace)],
    )
    trainer.fit(_Module(cast(DecoderConfig, config.model)), loader)


def _ddp() -> DDPStrategy:
    return DDPStrategy(
        cluster_environment=TorchElasticEnvironment(), process_group_backend="gloo", gradient_as_bucket_view=True
    )


class _Module(LightningModule):  # type: ignore[misc]
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = TransformerWithLoss(config)

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        loss: Tensor = self.model(**batch)["loss"]
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


class _Paced(Callback):  # type: ignore[misc]
    """Also reads the loss as often as the others do; `log` of Lightning would cost more."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._seen: list[float] = []

    def on_train_start(self, *_arguments: Any) -> None:
        self._pace.start()

    def on_train_batch_end(self, trainer: Any, _module: Any, outputs: dict[str, Tensor], *_batch: Any) -> None:
        if trainer.global_step % LOG_EVERY == 0:
            self._seen.append(outputs["loss"].item())
        self._pace.step_done()
