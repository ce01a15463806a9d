"""The weights with which a run begins: spec.trainer.model.from."""

import time
from collections.abc import Iterable
from typing import Any

from torch import nn

from trainyard.config import RunConfig
from trainyard.run_record import BaseRecord, RunRecord
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.data.tokenizer import TokenizerFile
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import location
from trainyard_trainer.runtime.world import World
from trainyard_trainer.weights.adapted import digest
from trainyard_trainer.weights.folder import open_weights
from trainyard_trainer.weights.tokenizer_files import byte_tokenizer
from trainyard_trainer.weights.weights import Weights, WeightsError

_FIELD = "spec.trainer.model.from.path"


def with_initial_sizes(config: RunConfig) -> RunConfig:
    """Return the configuration with the sizes of the model that its weights have, where the spec leaves them out.

    A run that is resumed has them in its record, and needs the folder no more.

    Raises:
        ConfigError: the folder holds no weights, the spec contradicts them, or the layout cannot divide the model.
    """
    if config.trainer.model.from_ is None:
        return config
    sizes = _recorded_sizes()
    if sizes is None:
        weights = _open(config)
        sizes = weights.config.to_dict()
        if problems := config.contradictions(sizes, str(weights.path)):
            raise ConfigError("; ".join(problems))
    config = config.with_sizes_of(sizes)
    from trainyard.admission import broken_layout_rules  # imported late: it needs an interpreter of CEL

    if problems := broken_layout_rules(config):
        raise ConfigError("; ".join(problems))
    return config


def initial_record(config: RunConfig) -> RunRecord | None:
    """Return the record of the run that has written the weights of spec.trainer.model.from, if there is one.

    Raises:
        ConfigError: the folder holds no weights.
    """
    return None if config.trainer.model.from_ is None else _open(config).record


def check_tokenizer(config: RunConfig, tokenizer: TokenizerFile | None) -> None:
    """Check that the data are in the tokens that the weights have learnt, as far as both tokenizers are known.

    Args:
        config: configuration of the run.
        tokenizer: tokenizer of the data; None for bytes, tables, and tokens of another program.

    Raises:
        ConfigError: a token has another number; the message names it.
    """
    weights, data = _open(config), config.trainer.data
    if weights.tokenizer is None or not data.is_text:
        return
    from tokenizers import Tokenizer

    own = byte_tokenizer() if tokenizer is None else Tokenizer.from_file(str(tokenizer.path))
    ours, theirs = _tokens(own), _tokens(Tokenizer.from_file(str(weights.tokenizer)))
    for number in sorted(ours.keys() & theirs.keys()):
        if ours[number] != theirs[number]:
            raise ConfigError(
                f"spec.trainer.data.tokenizer: its token {number} is {ours[number]!r}, but the weights in "
                f"{weights.path} have learnt {theirs[number]!r}; set it to file, and tokenizerFile to "
                f"{weights.tokenizer_location}"
            )


def base_of(config: RunConfig) -> BaseRecord | None:
    """Return the record of the frozen weights of a run; None if it trains all parameters.

    Raises:
        ConfigError: there are no weights.
    """
    if config.trainer.model.lora is None:
        return None
    return BaseRecord(sha256=digest(_open(config).path))


def initial_weights_digest(config: RunConfig) -> str | None:
    """Return the digest of the weights of spec.trainer.model.from, for the record of a run; None without them.

    Raises:
        ConfigError: there are no weights.
    """
    return None if config.trainer.model.from_ is None else digest(_open(config).path)


def load_initial_weights(config: RunConfig, named: Iterable[tuple[str, nn.Parameter]], world: World) -> str | None:
    """Fill this rank's part of the parameters, and return the identity of the run that has written the weights.

    Raises:
        ConfigError: the weights are damaged, or do not have these parameters.
    """
    began, weights = time.monotonic(), _open(config)
    try:
        weights.check(world.rank, world.size)
        weights.load(dict(named))
    except WeightsError as error:
        raise ConfigError(f"{_FIELD}: {error}") from error
    if world.rank == 0:
        log.info(f"read the initial weights from {weights.path} in {time.monotonic() - began:.1f} s")
    return weights.run


def _open(config: RunConfig) -> Weights:
    assert config.trainer.model.from_ is not None
    try:
        return open_weights(location(config.trainer.model.from_.path))
    except WeightsError as error:
        raise ConfigError(f"{_FIELD}: {error}") from error


def _recorded_sizes() -> dict[str, Any] | None:
    """Return the sizes of the model of the run that this attempt resumes; None if it begins one."""
    root = catalog.root_of_job()
    if not catalog.complete_steps(root):
        return None
    try:
        record = RunRecord.read(root)
    except ValueError as error:
        raise ConfigError(f"spec.checkpoint: {error}") from error
    return None if record is None else record.config.get("model")


def _tokens(tokenizer: Any) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
