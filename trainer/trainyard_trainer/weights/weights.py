"""What folders of weights have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from trainyard.models import FAMILIES as FAMILY_TYPES
from trainyard.models.family import DataShape, ModelConfig
from trainyard.run_record import TOKENIZER_SIDE_FILES, RunRecord
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.data.downloads import local_path
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.models.family import Model
from trainyard_trainer.runtime.object_store import Location

Shape = tuple[int, ...]


class WeightsError(ValueError):
    """A folder does not hold the weights of a model, or they are damaged; the message is one line with the fix."""


class Weights(ABC):
    """The weights of a model in a folder, with what is known about them. Tensors stay on the disk until `load`."""

    manifest: Manifest | None = None
    """Manifest of the checkpoint: its step and last report, among others; None for a Hugging Face folder."""

    def __init__(
        self, path: Location, config: ModelConfig, tokenizer: Location | None, record: RunRecord | None, run: str | None
    ) -> None:
        self.path = path
        """Folder that holds the tensors."""
        self.config = config
        """Sizes of the model."""
        self.tokenizer_location = tokenizer
        """The tokenizer.json, where it is; None if the model needs none, or the folder has none."""
        self.tokenizer = None if tokenizer is None else Path(local_copy(tokenizer, TOKENIZER_SIDE_FILES))
        """The same on this machine, with the files beside it."""
        self.record = record
        """Record of the run that has written the weights; None if there is none."""
        self.run = run
        """Identity of that run; None if it is not known."""

    @property
    def family(self) -> str:
        """Name of the model family (spec.trainer.model.name)."""
        return self.config.name

    @abstractmethod
    def shapes(self) -> dict[str, Shape]:
        """Return the shapes of the parameters, by their names in the model."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
        """Fill parameters in place, converted to their type; of a divided one each rank reads its own part.

        Args:
            tensors: parameters, or DTensors of them, by their names in the model (`Model.named_parameters`).
            group: ranks that call this together; None: this process alone. Nothing is exchanged but where tensors are.

        Raises:
            WeightsError: a parameter is absent or has another shape, or a file is damaged.
        """

    @abstractmethod
    def check(self, share: int = 0, shares: int = 1) -> None:
        """Read files and compare them with their checksums, if there are any: every `shares`-th file.

        Raises:
            WeightsError: a file is damaged.
        """


def local_copy(path: Location, beside: tuple[str, ...] = ()) -> str:
    """Return the path of a file of weights on this machine; see `data.downloads.local_path`."""
    return local_path(str(path), "the weights", beside=beside)


def build_model(config: ModelConfig, sequence_length: int | None = None) -> Model:
    """Return the whole model of these sizes, without memory for its parameters.

    Raises:
        WeightsError: only a worker can build it, from the module of spec.trainer.module.
    """
    if config.name not in FAMILY_TYPES or not FAMILY_TYPES[config.name].estimated:
        raise WeightsError(
            f"model {config.name}: only a worker with its spec.trainer.module can build it; use the weights of a "
            f"{', '.join(name for name, family in FAMILY_TYPES.items() if family.estimated)}"
        )
    sizes = config.to_dict()
    # Gradients of single samples have no global batch over which the load of experts could be balanced.
    changes = {"balance_loss_weight": 0.0} if "balanceLossWeight" in sizes else {}
    if sequence_length is not None and "sequenceLength" in sizes:
        changes["sequence_length"] = sequence_length
    shape = DataShape(
        vocabulary=sizes.get("vocabSize", 0),
        sequence_length=sizes.get("sequenceLength", 1),
        features=sizes.get("features"),
        classes=sizes.get("classes"),
    )
    layers = range(FAMILY_TYPES[config.name].layers(config))
    with torch.device("meta"):
        return FAMILIES[config.name].build(config.replace(**changes), shape, layers)


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shapes of the parameters of a model of these sizes, by name."""
    return {name: tuple(parameter.shape) for name, parameter in build_model(config, 1).named_parameters()}
