"""What the frameworks share: a data set as torch wants it, and the model with its loss."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from trainyard.models.decoder import DecoderConfig
from trainyard_trainer.data.tokens import TokenFile
from trainyard_trainer.models.llama.model import Llama


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Windows of tokens and, as labels, the token after each."""

    def __init__(self, tokens: TokenFile, length: int) -> None:
        self._tokens = tokens.read()
        self._length = length

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._length

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        start = number * self._length
        ids = torch.from_numpy(self._tokens[start : start + self._length + 1].astype(np.int64))
        return {"input_ids": ids[:-1], "labels": ids[1:]}


class TransformerWithLoss(nn.Module):
    """The same model, which gives its loss."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = Llama(config)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.transformer(input_ids)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}
