"""Explanations of a folder of weights, in one process."""

from collections.abc import Sequence
from typing import Any

import torch

from trainyard.resource.insight import Explain
from trainyard_trainer.data.table import Table
from trainyard_trainer.evaluation.folder import FolderData
from trainyard_trainer.explanation.samples import (
    Report,
    Vocabulary,
    chosen_numbers,
    explain_rows,
    explain_samples,
    image_width,
    sample_count,
    token_explainer,
)
from trainyard_trainer.explanation.table import table_content
from trainyard_trainer.explanation.tokens import tokens_content
from trainyard_trainer.runtime.errors import ConfigError


def explain_folder(
    data: FolderData, explain: Explain, texts: Sequence[str], report: Report | None = None
) -> dict[str, Any]:
    """Return the content of explanation.json for a folder of weights, on a GPU if there is one.

    Args:
        data: the weights and their data.
        explain: what is explained.
        texts: texts whose next token is explained, instead of samples of the data.
        report: receives the number of samples that are done.

    Raises:
        ConfigError: the model cannot be explained so.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = data.load(device).module
    numbers = chosen_numbers([subset.held_out for subset in data.subsets], sample_count(explain, data.samples))
    if isinstance(data.samples, Table):
        if texts:
            raise ConfigError(
                "--text: is for language models, and this model classifies the rows of a table; remove it"
            )
        width = image_width(explain, data.config, data.samples)
        rows, similarity = explain_rows(model, data.samples, numbers, device)
        return table_content(rows, similarity, width)
    vocabulary = Vocabulary(data.config, data.weights.tokenizer)
    explainer = token_explainer(model, vocabulary, device)
    if texts:
        return tokens_content([explainer.explain(vocabulary.ids(text)) for text in texts], explainer.baseline)
    found = explain_samples(explainer, data.samples, numbers, explain.tokens, report)
    return tokens_content(found, explainer.baseline)
