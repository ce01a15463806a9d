"""Explanations at the end of a job: the ranks divide the samples, and rank 0 writes the report."""

from typing import Any

import torch.distributed as dist

from trainyard.resource.insight import Explain
from trainyard_trainer.data.evaluation_sets import evaluation_sets
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.table import Table
from trainyard_trainer.evaluation.report import Subject
from trainyard_trainer.explanation.report import write_explanation
from trainyard_trainer.explanation.samples import (
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
from trainyard_trainer.parallel.parallelize import whole_model
from trainyard_trainer.runtime import heartbeat, log
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.train import Trainer


def explain_run(explain: Explain, trainer: Trainer, samples: Samples, subject: Subject, folder: Location) -> None:
    """Explain predictions of the model as it is; all ranks call it, each of which holds the entire model.

    Args:
        explain: spec.trainer.explain.
        trainer: the trainer, at the end.
        samples: the data.
        subject: what the report is about.
        folder: folder of the report.

    Raises:
        ConfigError: spec.trainer.explain does not fit the data.
        OSError: the storage refuses.
    """
    config, world = trainer.config, trainer.world
    model = whole_model(config, samples, trainer.parts, world.device)
    numbers = chosen_numbers(evaluation_sets(samples.subsets), sample_count(explain, samples))
    own = numbers[world.rank :: world.size]
    found: Any
    if isinstance(samples, Table):
        width = image_width(explain, config, samples)
        found = explain_rows(model, samples, own, world.device)
    else:
        tokenizer = None if samples.tokenizer is None else samples.tokenizer.path
        explainer = token_explainer(model, config.model.name, Vocabulary(tokenizer, config.trainer.data), world.device)
        found = explain_samples(explainer, samples, own, explain.tokens)
    # The others may still explain.
    heartbeat.beat(Phase.SHUTDOWN)
    parts = [found]
    if world.size > 1:
        parts = [None] * world.size
        dist.all_gather_object(parts, found, group=world.control)
    if world.rank != 0:
        return
    if isinstance(samples, Table):
        rows = sorted((row for part, _ in parts for row in part), key=lambda row: row.sample)
        similarity = sum(value * len(part) for part, value in parts if part) / len(rows)
        content = table_content(rows, similarity, width)
    else:
        texts = sorted((text for part in parts for text in part), key=lambda text: text.sample)
        content = tokens_content(texts, explainer.baseline)
    page = write_explanation(folder, subject, content)
    log.info(f"explanations: {page}")
