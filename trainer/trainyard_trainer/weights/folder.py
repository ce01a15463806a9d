"""A folder of weights: a checkpoint of a run, the folder of a run, or a Hugging Face folder."""

from pathlib import Path
from typing import NamedTuple

import torch

from trainyard.models.family import ModelConfig
from trainyard.run_record import RunRecord
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import MANIFEST
from trainyard_trainer.models.family import Model
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.weights.adapted import AdaptedWeights, base_path, lora_of
from trainyard_trainer.weights.checkpoint import CheckpointWeights
from trainyard_trainer.weights.hugging_face import CONFIG, HuggingFaceWeights
from trainyard_trainer.weights.weights import Weights, WeightsError, build_model

__all__ = ["LoadedModel", "Weights", "WeightsError", "find_weights", "load_model", "open_weights"]


class LoadedModel(NamedTuple):
    """A model with its weights, whole in one process."""

    module: Model
    """The model, in evaluation mode."""
    config: ModelConfig
    """Its sizes."""
    tokenizer: Path | None
    """Path of its tokenizer.json; None if it needs none, or the folder has none."""
    record: RunRecord | None
    """Record of the run that has written the weights; None if there is none."""


def find_weights(path: Location) -> Location:
    """Return the folder that holds the tensors: of the folder of a run that of its newest complete checkpoint.

    Raises:
        WeightsError: there are no weights.
        OSError: the storage fails.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise WeightsError(f"{path} {what}; name a folder of weights")
    if (path / MANIFEST).exists() or (path / CONFIG).exists():
        return path
    # `trainyard run` has the checkpoints in a folder of its own inside that of the run.
    for root in (path, path / "checkpoints"):
        if steps := catalog.complete_steps(root):
            return catalog.complete_folder(root, steps[0])
    raise WeightsError(
        f"{path} holds no weights; name a Hugging Face folder (with {CONFIG}), a checkpoint (with {MANIFEST}), or the "
        "folder of a run (with checkpoints in step-...)"
    )


def open_weights(path: Location) -> Weights:
    """Return the weights in a folder; their tensors stay on the disk until they are loaded.

    Args:
        path: a Hugging Face folder, a checkpoint, or the folder of a run, of which the newest complete checkpoint is
            meant.

    Raises:
        WeightsError: there are no weights, they are damaged, or the model is not supported.
        OSError: the storage fails.
    """
    folder = find_weights(path)
    if not (folder / MANIFEST).exists():
        return HuggingFaceWeights(folder)
    weights = CheckpointWeights(folder)
    lora = lora_of(weights.record)
    if lora is None or weights.record is None:
        return weights
    return AdaptedWeights(weights, open_weights(base_path(folder.parent, weights.record)), lora)


def load_model(
    path: Location,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    sequence_length: int | None = None,
) -> LoadedModel:
    """Return the model of a folder of weights, whole in this process.

    Args:
        path: folder of weights, see `open_weights`.
        device: device of its parameters.
        dtype: type of its parameters; None: float32.
        sequence_length: positions that the inputs may have; None: as many as the model was trained on.

    Raises:
        WeightsError: there are no weights, they are damaged, or the model is not supported.
        OSError: the storage fails.
    """
    weights = open_weights(path)
    device = torch.device(device)
    model = build_model(weights.config, sequence_length).to(dtype=dtype or torch.float32).to_empty(device=device)
    model.tie()
    positions = sequence_length if sequence_length is not None else getattr(weights.config, "sequence_length", 1)
    model.set_positions(0, positions, device)
    weights.load(dict(model.named_parameters()))
    return LoadedModel(model.eval(), weights.config, weights.tokenizer, weights.record)
