"""The data set of a job, from its specification."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainyard.config import RunConfig
from trainyard_trainer.data.chat import Conversations
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.sources import prepare_sources
from trainyard_trainer.data.table import TrainedOn, load_table
from trainyard_trainer.data.windows import Windows


def load_samples(
    config: RunConfig,
    report: Callable[[float, float], None] | None = None,
    tokenizer: Path | None = None,
    trained_on: Sequence[Mapping[str, Any]] = (),
) -> Samples:
    """Return the samples of a job; what has to be prepared is prepared once for all pods.

    Args:
        config: configuration of the run.
        report: receives the share of the preparation that is done, and the seconds up to the last progress.
        tokenizer: a tokenizer.json that replaces the one that would be learned: the one that a resumed run has.
        trained_on: sources of the run that has trained the model (`Samples.sources`), whose scaling and classes
            a table gets.

    Raises:
        ConfigError: the data is missing, unreadable, or does not match spec.trainer.data.
    """
    if config.trainer.data.source == "table":
        return load_table(config, TrainedOn.of_record(trained_on))
    sources, end, file = prepare_sources(config, report or (lambda _share, _seconds: None), tokenizer)
    if config.trainer.data.source == "chat":
        return Conversations(sources[0], config, file)
    return Windows(sources, config.trainer.data.sequence_length, config.vocabulary, end, file)
