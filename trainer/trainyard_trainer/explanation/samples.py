"""Explanations of samples of a data set: of the rows of a table, or of the beginnings of texts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainyard.config import RunConfig
from trainyard.models import FAMILIES as FAMILY_TYPES
from trainyard.resource.datasets import Data
from trainyard.resource.insight import Explain
from trainyard_trainer.data.documents import Piece
from trainyard_trainer.data.evaluation_sets import EvaluationSet
from trainyard_trainer.data.samples import IGNORED, Samples
from trainyard_trainer.data.table import Table
from trainyard_trainer.data.tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer, read_ids
from trainyard_trainer.explanation.table import RowExplanation, TableExplainer
from trainyard_trainer.explanation.tokens import TextExplanation, TokenExplainer
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.models.family import Model
from trainyard_trainer.runtime.errors import ConfigError

ROWS, TEXTS = 200, 8
"""Default number of rows of a table, and of texts, that are explained."""
DIGITS_WIDTH = 8
"""Columns of the images in the builtin table `digits`."""

Report = Callable[[int], None]
"""Receives the number of samples that are done."""


def sample_count(explain: Explain, samples: Samples) -> int:
    """Return how many samples are explained, if there are so many."""
    return explain.samples or (ROWS if isinstance(samples, Table) else TEXTS)


def image_width(explain: Explain, config: RunConfig, table: Table) -> int | None:
    """Return the columns in a row of an image; None if rows are no images.

    Raises:
        ConfigError: the columns of the table are no complete rows of that width.
    """
    width = explain.image_width or (DIGITS_WIDTH if config.trainer.data.builtin == "digits" else None)
    if width is not None and table.width % width:
        raise ConfigError(
            f"spec.trainer.explain.imageWidth: {width} does not divide the {table.width} columns of the table; set it "
            "to the width of the images"
        )
    return width


def explain_rows(
    model: Model, table: Table, numbers: Sequence[int], device: torch.device
) -> tuple[list[RowExplanation], float]:
    """Return the explanations of rows, and how similar the maps are to those of random weights (NaN without rows)."""
    if not numbers:
        return [], float("nan")
    batch = table.read(np.asarray(numbers, np.int64), 0, 1)
    x_NF = batch.inputs.to(device)
    explainer = TableExplainer(model)
    rows = explainer.explain(x_NF, batch.targets, numbers)
    similarity = explainer.similarity_to_random(x_NF, rows)
    mean, deviation, _ = table.trained_on
    return [replace(row, features=(np.array(row.features) * deviation + mean).tolist()) for row in rows], similarity


def explain_samples(
    explainer: TokenExplainer, samples: Samples, numbers: Sequence[int], tokens: int, report: Report | None = None
) -> list[TextExplanation]:
    """Return the explanations of the token that follows the first `tokens` of each sample."""
    texts = []
    for number in numbers:
        batch = samples.read(np.array([number], np.int64), 0, 1)
        ids, targets = batch.inputs[0], batch.targets[0]
        length = min(tokens, len(ids))
        documents = None if batch.documents is None else batch.documents[0, :length]
        actual = int(targets[length - 1])
        texts.append(explainer.explain(ids[:length], documents, None if actual == IGNORED else actual, number))
        if report is not None:
            report(1)
    return texts


class Vocabulary:
    """Text of token ids, and token ids of text."""

    def __init__(self, tokenizer: Path | None, data: Data | None) -> None:
        """Load the tokenizer.

        Args:
            tokenizer: path of a tokenizer.json; None if there is none.
            data: spec.trainer.data of the run that has trained the model; None if it is not known.
        """
        self._tokenizer: Tokenizer | None = None
        separates = data is None or data.documents != "joined"
        if tokenizer is not None:
            end_token = None if data is None else data.end_token
            self._tokenizer = JsonTokenizer(tokenizer, separates=separates, end_token=end_token)
        elif data is not None and data.tokenizer == "byte" and data.is_text:
            self._tokenizer = ByteTokenizer(separates=separates)
        end = None if data is None else data.end_token_id
        if self._tokenizer is not None:
            end = self._tokenizer.end
        self.baseline = 0 if end is None else end
        """Id of the token that ends a document; 0 if there is none."""

    def text(self, number: int) -> str:
        """Return the text of a token; without a tokenizer its number."""
        return f"[{number}]" if self._tokenizer is None else self._tokenizer.decode([number])

    def ids(self, text: str) -> Tensor:
        """Return the token ids [T] of the beginning of a document.

        Raises:
            ConfigError: there is no tokenizer, or the text has no token.
        """
        if self._tokenizer is None:
            raise ConfigError("--text: the weights have no tokenizer.json, without which text has no tokens; add it")
        encoded = self._tokenizer.encode(Piece(text, first=True, last=False))
        ids = torch.from_numpy(read_ids(encoded, self._tokenizer.size).astype(np.int64))
        if not len(ids):
            raise ConfigError("--text: is empty; give at least one token")
        return ids


def token_explainer(model: Model, family: str, vocabulary: Vocabulary, device: torch.device) -> TokenExplainer:
    """Return what explains the predictions of a language model.

    Args:
        model: the model, all of it.
        family: name of its family.
        vocabulary: its tokens.
        device: its device.

    Raises:
        ConfigError: no such explanation exists for the family.
    """
    able = [name for name, each in FAMILY_TYPES.items() if "explain" in each.supports]
    embedding = FAMILIES[family].plan(model).embedding() if family in able else None
    if embedding is None:
        raise ConfigError(f"a model of the family {family} cannot be explained, only {' and '.join(able)} can")
    return TokenExplainer(model, embedding, vocabulary.text, vocabulary.baseline, device)


def chosen_numbers(sets: Sequence[EvaluationSet], count: int) -> list[int]:
    """Return the numbers of the first samples of each source, about as many of each, `count` in all."""
    share = -(-count // max(1, len(sets)))
    numbers = [int(number) for each in sets for number in each.numbers[:share]]
    return numbers[:count]
