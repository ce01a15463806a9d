"""Weights in a checkpoint of a run."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from trainyard.models import FAMILIES as FAMILY_TYPES
from trainyard.models.family import ModelConfig
from trainyard.run_record import TOKENIZER_FILE, RunRecord
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.checkpoint.outcome import first_line
from trainyard_trainer.checkpoint.storage import FAILURES, load, saved_shapes
from trainyard_trainer.optim.state import is_optimizer_state, model_tensor
from trainyard_trainer.runtime.object_store import Location, ObjectStoreError
from trainyard_trainer.weights.weights import Shape, Weights, WeightsError


class CheckpointWeights(Weights):
    """The parameters in a complete checkpoint, whatever layout wrote it."""

    def __init__(self, path: Location) -> None:
        """Read the manifest of a checkpoint, and the record of its run beside it.

        Raises:
            WeightsError: one of them is damaged, or a newer version has written it.
            OSError: the storage fails.
        """
        try:
            manifest = Manifest.read(path)
            record = RunRecord.read(path.parent)
        except FileNotFoundError as error:
            raise WeightsError(f"{path} is no complete checkpoint; name another step") from error
        except ValueError as error:
            raise WeightsError(str(error)) from error
        # A folder of another run may have been copied here.
        if record is not None and manifest.run not in (None, record.id):
            record = None
        tokenizer = path.parent / TOKENIZER_FILE
        has_tokenizer = record is not None and record.tokenizer is not None and tokenizer.exists()
        try:
            self._shapes = {name: shape for name, shape in saved_shapes(path).items() if not is_optimizer_state(name)}
        except ValueError as error:
            raise WeightsError(f"{error}; use an earlier checkpoint") from error
        config = _config(manifest.model, self.shapes(), path)
        super().__init__(path, config, tokenizer if has_tokenizer else None, record, manifest.run)
        self.manifest = manifest

    def shapes(self) -> dict[str, Shape]:
        """Return the shapes of the parameters, by their names in the model."""
        prefix = model_tensor("")
        return {name.removeprefix(prefix): shape for name, shape in self._shapes.items() if name.startswith(prefix)}

    def load(self, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
        """Fill parameters in place; see `Weights.load`."""
        shapes = self.shapes()
        for name, tensor in tensors.items():
            if shapes.get(name) != tuple(tensor.shape):
                there = f"has the shape {list(shapes[name])}" if name in shapes else "is absent"
                raise WeightsError(
                    f"{self.path}: the parameter {name} {there} instead of {list(tensor.shape)}; the weights are "
                    "those of another model"
                )
        try:
            with warnings.catch_warnings():
                # torch warns a process that loads alone that it is alone.
                warnings.simplefilter("ignore", UserWarning)
                load(self.path, {model_tensor(name): tensor.detach() for name, tensor in tensors.items()}, group)
        except ObjectStoreError:
            raise
        except (*FAILURES, Exception) as error:
            # torch raises various errors for a file that is too short; the checksums say what is wrong.
            problem = catalog.find_damage(self.path) or f"{self.path} cannot be read: {first_line(error)}"
            raise WeightsError(f"{problem}; use an earlier checkpoint") from error

    def check(self, share: int = 0, shares: int = 1) -> None:
        """Compare files with the checksums in the manifest; see `Weights.check`."""
        problem = catalog.find_damage(self.path, share, shares)
        if problem is not None:
            raise WeightsError(f"{problem}; use an earlier checkpoint")


def _config(saved: dict[str, Any], shapes: Mapping[str, Shape], path: Location) -> ModelConfig:
    """Return the sizes of the model of a checkpoint.

    Raises:
        WeightsError: this version does not know the model, or not these sizes.
    """
    name = saved.get("name")
    if name not in FAMILY_TYPES:
        raise WeightsError(
            f"{path}: its model {name} is none of {', '.join(FAMILY_TYPES)}; use the version that has it"
        )
    saved = {**FAMILY_TYPES[name].sizes_of_weights(shapes), **saved}
    try:
        config: ModelConfig = FAMILY_TYPES[name].config.model_validate(saved, extra="ignore")
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise WeightsError(f"{path / 'manifest.json'}: model.{field}: {first['msg']}; restore it") from error
    return config
