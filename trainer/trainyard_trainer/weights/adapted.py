"""Weights of a run that trains adapters: those of its base with the adapters of a checkpoint merged into them.

A checkpoint of such a run holds the adapters only. The base is the folder that spec.trainer.model.from names, or a link
or folder `base` in the folder of the run, for where that path does not exist.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from trainyard.resource.lora import Lora
from trainyard.run_record import RunRecord
from trainyard_trainer.checkpoint.manifest import MANIFEST
from trainyard_trainer.models.initial import own_part
from trainyard_trainer.models.lora import A, B, is_adapter, merge
from trainyard_trainer.runtime.object_store import Location, ObjectPath, location
from trainyard_trainer.weights.checkpoint import CheckpointWeights
from trainyard_trainer.weights.weights import Shape, Weights, WeightsError, local_copy, parameter_shapes

BLOCKS, BLOCK_BYTES = 64, 1 << 16
BASE = "base"
"""Name of the base, or of a link to it, in the folder of a run."""


class AdaptedWeights(Weights):
    """The parameters of a base, with adapters merged into them as they are read."""

    def __init__(self, adapters: CheckpointWeights, base: Weights, lora: Lora) -> None:
        """Put a base and adapters together.

        Raises:
            WeightsError: the base is another model than the one that the adapters belong to.
        """
        super().__init__(adapters.path, adapters.config, adapters.tokenizer_location, adapters.record, adapters.run)
        self.adapters, self.base, self.lora = adapters, base, lora
        self._shapes = parameter_shapes(self.config)
        found = base.shapes()
        for name, shape in self._shapes.items():
            if found.get(name) != shape:
                raise WeightsError(
                    f"{base.path}: the parameter {name} is not that of the model whose adapters are in {self.path}; "
                    "name the folder that the adapters were trained on"
                )

    def shapes(self) -> dict[str, Shape]:
        """Return the shapes of the parameters, by their names in the model; adapters are parts of them."""
        return self._shapes

    def load(self, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
        """Fill parameters in place; see `Weights.load`. Adapters, which are small, are read completely."""
        self.base.load(tensors, group)
        pairs = {name: _adapters_of(name) for name in tensors}
        shapes = self.adapters.shapes()
        wanted = [name for pair in pairs.values() for name in pair if name in shapes]
        adapters = {name: torch.empty(shapes[name]) for name in wanted}
        self.adapters.load(adapters)
        for name, (first, second) in pairs.items():
            if first not in adapters:
                continue
            own, offsets = own_part(tensors[name].detach())
            if own.numel():
                (row, column), (rows, columns) = offsets, own.shape
                lora_a = adapters[first][:, column : column + columns].to(own.device)
                lora_b = adapters[second][row : row + rows].to(own.device)
                own.copy_(merge(own, lora_a, lora_b, self.lora))

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the adapters alone, by their names in the model."""
        adapters = {name: torch.empty(shape) for name, shape in self.adapters.shapes().items() if is_adapter(name)}
        self.adapters.load(adapters)
        return adapters

    def check(self, share: int = 0, shares: int = 1) -> None:
        """Compare files with their checksums; see `Weights.check`."""
        self.adapters.check(share, shares)
        self.base.check(share, shares)


def lora_of(record: RunRecord | None) -> Lora | None:
    """Return the adapters that a run trains; None if it trains all parameters."""
    model = {} if record is None else record.config.get("trainer", {}).get("model", {})
    try:
        return None if model.get("lora") is None else Lora.model_validate(model["lora"], extra="ignore")
    except ValidationError as error:
        raise WeightsError(f"run.json: spec.trainer.model.lora: {error.errors()[0]['msg']}; restore it") from error


def base_path(run: Location, record: RunRecord) -> Location:
    """Return the folder of the base of a run.

    Args:
        run: folder of the run.
        record: record of the run.

    Raises:
        WeightsError: it does not exist here.
    """
    link = run / BASE
    if link.exists():
        return link
    named = named_base(record)
    if named is not None and location(named).exists():
        return location(named)
    raise WeightsError(
        f"{run} holds adapters only, and their base {named} does not exist here; put it there, or "
        + (f"copy it to {link}" if isinstance(link, ObjectPath) else f"make a link to it: ln -s FOLDER {link}")
    )


def named_base(record: RunRecord | None) -> str | None:
    """Return what spec.trainer.model.from of a run names; None if it is not known."""
    model = {} if record is None else record.config.get("trainer", {}).get("model", {})
    path = (model.get("from") or {}).get("path")
    return None if path is None else str(path)


def digest(folder: Location) -> str:
    """Return the SHA-256 of what identifies the weights in a folder, without reading them completely.

    That is for a checkpoint its manifest, which has the checksum of each file, and for files of safetensors their sizes
    and `BLOCKS` blocks of each, the first of which begins with its header.
    """
    found = hashlib.sha256()
    manifest = folder / MANIFEST
    if manifest.exists():
        found.update(manifest.read_bytes())
    files = [path for path in folder.iterdir() if path.name.endswith(".safetensors")]
    for path in sorted(files, key=lambda path: path.name):
        copy = Path(local_copy(path))
        size = copy.stat().st_size
        found.update(f"{path.name} {size} ".encode())
        with copy.open("rb") as file:
            for number in range(BLOCKS):
                file.seek(max(0, size - BLOCK_BYTES) * number // (BLOCKS - 1))
                found.update(file.read(BLOCK_BYTES))
    return found.hexdigest()


def _adapters_of(name: str) -> tuple[str, str]:
    stem = name.removesuffix(".weight")
    return f"{stem}{A}", f"{stem}{B}"
