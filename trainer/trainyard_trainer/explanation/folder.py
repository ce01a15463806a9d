"""Explanations of a folder of weights, in one process."""

from collections.abc import Sequence
from typing import Any

import torch

from trainyard.resource.datasets import Data
from trainyard.resource.insight import Explain
from trainyard_trainer.data.table import Table
from trainyard_trainer.evaluation.folder import FolderData, folder_subject
from trainyard_trainer.evaluation.report import Subject
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
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.weights.folder import load_model, open_weights


def explain_folder(data: FolderData, explain: Explain, report: Report | None = None) -> dict[str, Any]:
    """Return the content of explanation.json for samples, on a GPU if there is one.

    Args:
        data: the weights and their data.
        explain: what is explained.
        report: receives the number of samples that are done.

    Raises:
        ConfigError: the model cannot be explained so.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = data.load(device).module
    numbers = chosen_numbers(data.evaluated, sample_count(explain, data.samples))
    if isinstance(data.samples, Table):
        width = image_width(explain, data.config, data.samples)
        rows, similarity = explain_rows(model, data.samples, numbers, device)
        return table_content(rows, similarity, width)
    vocabulary = Vocabulary(data.weights.tokenizer, data.config.trainer.data)
    explainer = token_explainer(model, data.weights.family, vocabulary, device)
    return tokens_content(explain_samples(explainer, data.samples, numbers, explain.tokens, report), explainer.baseline)


def explain_texts(path: Location, texts: Sequence[str], report: Report | None = None) -> tuple[Subject, dict[str, Any]]:
    """Return the subject and the content of explanation.json for texts of a user's own.

    Args:
        path: folder of weights.
        texts: texts whose next token is explained.
        report: receives the number of texts that are done.

    Raises:
        ConfigError: the model cannot be explained so.
        WeightsError: there are no weights.
    """
    weights = open_weights(path)
    longest = getattr(weights.config, "sequence_length", None)
    if longest is None:
        raise ConfigError("--text: is for language models, and this model classifies the rows of a table; remove it")
    record = weights.record
    trained = None if record is None else record.config.get("trainer", {}).get("data")
    vocabulary = Vocabulary(
        weights.tokenizer, None if trained is None else Data.model_validate(trained, extra="ignore")
    )
    ids = [vocabulary.ids(text) for text in texts]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(path, device, sequence_length=max(longest, *map(len, ids))).module
    explainer = token_explainer(model, weights.family, vocabulary, device)
    found = []
    for each in ids:
        found.append(explainer.explain(each))
        if report is not None:
            report(1)
    return folder_subject(weights, "given texts", f"{len(texts)} texts"), tokens_content(found, explainer.baseline)
