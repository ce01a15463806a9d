"""Plug-ins: a model, data set, loss or metrics of a user's own, with the loop, layouts and checkpoints of the trainer.

`spec.trainer.module: PACKAGE.MODULE:FUNCTION` names a function that takes the configuration of the run and returns a
`Plugin`. docs/plugins.md has an example.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from trainyard.config import RunConfig
from trainyard.models.family import CUSTOM
from trainyard.protocol.progress import METRIC_NAME
from trainyard_trainer.data.custom import CustomSamples, DataSet
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.models.family import Family, Model, ParallelPlan, TensorPlan
from trainyard_trainer.runtime.errors import ConfigError

__all__ = ["DataSet", "Family", "Loss", "Metric", "Model", "ParallelPlan", "Plugin", "TensorPlan", "load_plugin"]

BUILTIN_METRICS = ("loss", "accuracy", "perplexity", "precision", "recall", "f1")

Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes outputs [N, T, ...] of the model and targets [N, T]; returns the sum of the losses of all positions, a scalar.

It is called once per micro-batch, and the sums of all ranks are added and divided by the targets of the global batch
that are not -100. So each position must count by itself: a mean over a micro-batch would depend on its size."""


class Metric(Protocol):
    """A metric of the evaluation. Ranks exchange only its sums, so that it is the same on every layout."""

    def sums(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return sums over some positions, a vector of fixed size.

        Args:
            predicted: the class with the largest output at each position [P].
            targets: the actual class [P]; positions that do not count are left out.
        """

    def value(self, sums: Tensor) -> float:
        """Return the metric, given the sums over all positions, in float64."""


@dataclass(frozen=True)
class Plugin:
    """What a module brings; all of it is optional."""

    model: Family | None = None
    """The model, for spec.trainer.model.name: custom."""
    data: DataSet | None = None
    """The data set, for spec.trainer.data.source: custom."""
    loss: Loss | None = None
    """The loss, in place of the cross-entropy, of any model. A tensor group gathers all outputs for it."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """More metrics of each evaluation, by name (letters, digits and _)."""


def load_plugin(config: RunConfig) -> Plugin:
    """Return what spec.trainer.module brings, and make its model the family `custom`; without a module, nothing.

    Raises:
        ConfigError: the module or its function does not exist, or what it returns is not valid.
    """
    if config.trainer.module is None:
        return Plugin()
    name, _, function = config.trainer.module.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A package that the module itself imports is missing: the traceback says where.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"spec.trainer.module: there is no module {error.name} in the worker; use an image that has it, or mount "
            "its folder and name the folder in PYTHONPATH (spec.env)"
        ) from error
    make = getattr(module, function, None)
    if not callable(make):
        raise ConfigError(f"spec.trainer.module: {name} has no function {function}; correct the name")
    plugin = make(config)
    if not isinstance(plugin, Plugin):
        raise ConfigError(
            f"spec.trainer.module: {config.trainer.module} has returned a {type(plugin).__name__}; let it return a "
            "trainyard_trainer.plugin.Plugin"
        )
    _check_metrics(plugin)
    if plugin.model is not None:
        FAMILIES[CUSTOM] = plugin.model
    return plugin


def prepare_samples(
    config: RunConfig,
    plugin: Plugin,
    report: Callable[[float, float], None] | None = None,
    tokenizer: Path | None = None,
    trained_on: Sequence[Mapping[str, Any]] = (),
) -> Samples:
    """Return the samples of a job: those of the module, or those that spec.trainer.data describes.

    `report`, `tokenizer` and `trained_on` are those of `trainyard_trainer.data.loading.load_samples`.

    Raises:
        ConfigError: the data is missing, unreadable, or does not match spec.trainer.data.
    """
    if config.trainer.data.source != CUSTOM:
        return load_samples(config, report, tokenizer, trained_on)
    if plugin.data is None:
        raise ConfigError(
            "spec.trainer.data.source: custom is the data set of spec.trainer.module, but that has none; let its "
            "function return Plugin(data=...), or choose another source"
        )
    return CustomSamples(plugin.data, config)


def _check_metrics(plugin: Plugin) -> None:
    for name in plugin.metrics:
        if name in BUILTIN_METRICS or not METRIC_NAME.fullmatch(name):
            raise ConfigError(
                f"spec.trainer.module: its metric {name!r} must be named in letters, digits and _, and not as "
                f"one of the trainer's ({', '.join(BUILTIN_METRICS)}); rename it"
            )
