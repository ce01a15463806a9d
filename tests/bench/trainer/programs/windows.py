"""What the frameworks share: a data set as torch wants it, and the model with its loss."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from trainyard.models.decoder_sizes import DecoderConfig
from trainyard_trainer.data.windows import Windows
from trainyard_trainer.models.llama.model import Llama


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Windows of tokens and, as labels, the token after each."""

    def __init__(self, samples: Windows) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        batch = self._samples.read(np.array([number]), 0, 1)
        return {"input_ids": batch.inputs[0], "labels": batch.targets[0]}


class TransformerWithLoss(nn.Module):
    """The same model, which gives its loss."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = Llama(config)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.transformer(input_ids)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}
