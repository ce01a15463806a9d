"""Weights in a Hugging Face folder: config.json and files of safetensors."""

import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainyard.models import FAMILIES as FAMILY_TYPES
from trainyard.models.family import ModelConfig, ModelFamily
from trainyard.models.hugging_face import architecture
from trainyard.run_record import TOKENIZER_FILE, RunRecord
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.models.initial import own_part
from trainyard_trainer.models.names import HuggingFaceNames
from trainyard_trainer.runtime.object_store import Location, ObjectStoreUnavailable
from trainyard_trainer.weights.weights import Shape, Weights, WeightsError, local_copy, parameter_shapes

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
_COPY = "copy the folder again"
_IGNORED = (".rotary_emb.inv_freq", ".masked_bias", ".bias_k")
"""Ends of the names of tensors that follow from config.json, which old versions of transformers have saved."""


def read_json(path: Location) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: the file is missing, or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except ObjectStoreUnavailable:
        raise
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); {_COPY}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error}); {_COPY}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is not a JSON object; {_COPY}")
    return content


def read_config(path: Location) -> ModelConfig:
    """Return the sizes of the model in a config.json.

    Raises:
        WeightsError: no family here has the model.
    """
    content = read_json(path)
    try:
        family = _family(architecture(content))
        config: ModelConfig = family.config.model_validate({"name": family.name, **family.from_hugging_face(content)})
    except ValidationError as error:
        raise WeightsError(f"{path}: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    if problems := family.problems(config, "none"):
        raise WeightsError(f"{path}: {problems[0]}")
    return config


def _family(name: str) -> ModelFamily[Any]:
    """Return the family that has an architecture.

    Raises:
        ValueError: none has it.
    """
    for family in FAMILY_TYPES.values():
        if name in family.architectures:
            return family
    known = ", ".join(each for family in FAMILY_TYPES.values() for each in family.architectures)
    raise ValueError(f"architectures: {name} is not supported, only {known}")


class HuggingFaceWeights(Weights):
    """The tensors of a Hugging Face folder, read slice by slice from its files, which are downloaded from a store."""

    def __init__(self, path: Location) -> None:
        """Read config.json and the headers of all files of tensors.

        Raises:
            WeightsError: a file is missing or truncated, the model is not supported, or its tensors are not the
                model's.
            OSError: the storage fails.
        """
        config = read_config(path / CONFIG)
        tokenizer = path / TOKENIZER_FILE
        try:
            record = RunRecord.read(path)
        except ValueError as error:
            raise WeightsError(str(error)) from error
        run = None if record is None else record.id
        super().__init__(path, config, tokenizer if tokenizer.exists() else None, record, run)
        self._shapes = parameter_shapes(config)
        make_names = FAMILIES[config.name].hugging_face
        assert make_names is not None, "a family with architectures has names"
        self._names: HuggingFaceNames = make_names(config)
        self._experts: int = getattr(config, "experts", 0)
        self._files = _open_files(path)
        self._check_tensors()

    def shapes(self) -> dict[str, Shape]:
        """Return the shapes of the parameters, by their names in the model."""
        return self._shapes

    def load(self, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
        """Fill parameters in place; see `Weights.load`."""
        for name, tensor in tensors.items():
            if self._shapes.get(name) != tuple(tensor.shape):
                there = f"has the shape {list(self._shapes[name])}" if name in self._shapes else "is absent"
                raise WeightsError(
                    f"{self.path}: the parameter {name} {there} instead of {list(tensor.shape)}; the weights are "
                    "those of another model"
                )
            own, offsets = own_part(tensor.detach())
            if not own.numel():
                continue
            # Rule 1: a stack of experts [experts, in, out] is one matrix [out, in] of each expert there.
            if own.ndim == 3:
                for expert, matrix in enumerate(own):
                    there = self._names.to_hugging_face(name, self._experts)[offsets[0] + expert]
                    matrix.copy_(self._read(there, offsets[:0:-1], tuple(matrix.shape[::-1])).T)
            # Rule 2: everything else is one tensor of the same shape.
            else:
                own.copy_(self._read(self._names.to_hugging_face(name)[0], offsets, tuple(own.shape)))

    def check(self, share: int = 0, shares: int = 1) -> None:
        """Do nothing: safetensors has no checksums, and the lengths of the files have been compared already."""

    def _read(self, name: str, offsets: tuple[int, ...], shape: Shape) -> Tensor:
        part = tuple(slice(start, start + size) for start, size in zip(offsets, shape, strict=True))
        value: Tensor = self._files[name].get_slice(name)[part]
        return value

    def _check_tensors(self) -> None:
        """Check that the files have exactly the tensors of the model, with their shapes.

        Raises:
            WeightsError: one is absent or superfluous, or has another shape.
        """
        left = set(self._files)
        for name, shape in self._shapes.items():
            wanted = tuple(reversed(shape[1:])) if len(shape) == 3 else shape
            for there in self._names.to_hugging_face(name, self._experts):
                if there not in self._files:
                    raise WeightsError(f"{self.path}: the tensor {there} is absent; {_COPY}")
                found = tuple(self._files[there].get_slice(there).get_shape())
                if found != wanted:
                    raise WeightsError(
                        f"{self.path}: the tensor {there} has the shape {list(found)} instead of {list(wanted)}; "
                        f"{CONFIG} is that of another model"
                    )
                left.discard(there)
        # A tied head is the embedding's matrix, which some programs save twice.
        if getattr(self.config, "tied_embeddings", False):
            left.discard("lm_head.weight")
        left = {name for name in left if not name.endswith(_IGNORED)}
        if left:
            first = min(left)
            raise WeightsError(
                f"{self.path}: the tensor {first} and {len(left) - 1} others are no parameters of "
                f"{self._names.architecture} as {CONFIG} describes it; weights with other parts are not supported"
            )


def _open_files(path: Location) -> dict[str, Any]:
    """Return the open file of each tensor, by the tensor's name.

    Raises:
        WeightsError: a file is missing or truncated, or there is none.
    """
    index = path / INDEX
    if index.exists():
        mapping = read_json(index).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise WeightsError(f"{index}: weight_map is absent; {_COPY}")
    elif (path / SINGLE).exists():
        mapping = None
    else:
        pickled = sorted(file.name for file in path.iterdir() if file.name.endswith(".bin"))
        why = f"; {pickled[0]} is pickled, and such files are not loaded" if pickled else ""
        raise WeightsError(f"{path} has neither {SINGLE} nor {INDEX}{why}; save the model with save_pretrained")
    names = sorted({str(name) for name in mapping.values()}) if mapping else [SINGLE]
    files = {name: _open(path / name) for name in names}
    held = {tensor: file for file in files.values() for tensor in file.keys()}  # noqa: SIM118 (it is no dictionary)
    for tensor in mapping or ():
        if tensor not in held:
            raise WeightsError(f"{path / str((mapping or {})[tensor])} has no tensor {tensor}; {_COPY}")
    return held


def _open(path: Location) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path} is missing; {_COPY}")
    try:
        return safe_open(local_copy(path), "pt")
    except SafetensorError as error:
        raise WeightsError(f"{path} is truncated or no file of safetensors ({error}); {_COPY}") from error
