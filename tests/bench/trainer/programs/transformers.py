"""The Trainer of Hugging Face transformers: https://huggingface.co/docs/transformers/main_classes/trainer."""

import tempfile
from typing import cast

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tests.bench.trainer.cases import LOG_EVERY, local_batch
from tests.bench.trainer.pace import Pace
from tests.bench.trainer.programs.windows import TransformerWithLoss, WindowDataset
from trainyard.config import RunConfig
from trainyard.models.decoder_sizes import DecoderConfig
from trainyard_trainer.data.windows import Windows
from trainyard_trainer.runtime.world import World


def train(config: RunConfig, world: World, samples: Windows, pace: Pace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=1_000_000,
            per_device_train_batch_size=local_batch(config, world.size),
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            logging_steps=LOG_EVERY,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            ddp_backend="gloo",
            ddp_find_unused_parameters=False,
        )
        data = WindowDataset(samples)
        trainer = Trainer(
            TransformerWithLoss(cast(DecoderConfig, config.model)),
            arguments,
            train_dataset=data,
            callbacks=[_Paced(pace)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class _Paced(TrainerCallback):  # type: ignore[misc]
    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(self, *_arguments: object, **_state: object) -> None:
        self._pace.start()

    def on_step_end(self, *_arguments: object, **_state: object) -> None:
        self._pace.step_done()
