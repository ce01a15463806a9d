"""Writes weights as a Hugging Face folder, shard by shard, so that no process ever holds the whole model.

The files are written into a folder inside of the target (`PARTIAL`) and moved at the end, config.json last: a folder
with a config.json is complete. For an object store they are written on this machine, uploaded and removed one by one.
The target itself is never renamed, since it may be the root of a volume.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainyard.models import FAMILIES as FAMILY_TYPES
from trainyard.resource.export import Dtype
from trainyard.run_record import RUN_FILE
from trainyard_trainer.data.downloads import cache_folder
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.models.names import HuggingFaceNames
from trainyard_trainer.record.recorder import record_export
from trainyard_trainer.record.statement import RECORD_FILE, RecordError
from trainyard_trainer.runtime.object_store import Location, ObjectPath
from trainyard_trainer.weights.hugging_face import CONFIG, INDEX, SINGLE
from trainyard_trainer.weights.model_card import CARD, model_card
from trainyard_trainer.weights.program import PROGRAM, write_program
from trainyard_trainer.weights.tokenizer_files import generation_config, write_tokenizer
from trainyard_trainer.weights.weights import Shape, Weights, WeightsError, parameter_shapes

PARTIAL = ".partial"
"""Folder inside the target in which an export is written."""
SHARD_BYTES = 2_000_000_000
"""Bytes of one file of tensors, unless a single parameter is larger."""
DTYPES: Mapping[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GENERATION_CONFIG = "generation_config.json"

Progress = Callable[[int, int], None]
"""Receives the number of shards that this process has written, and of those that it writes."""


class Export:
    """An export of weights, which processes write together: first each its shards, then one of them the rest.

    Between `begin`, `write_shards` and `commit` the processes wait for each other.
    """

    def __init__(
        self,
        weights: Weights,
        target: Location,
        dtype: Dtype = "float32",
        shard_bytes: int = SHARD_BYTES,
        key: Path | None = None,
    ) -> None:
        """Plan the shards.

        Args:
            weights: what is exported.
            target: folder that is written; an export that it holds is replaced at the end.
            dtype: type of all tensors.
            shard_bytes: bytes of one file, unless a single parameter is larger.
            key: private key that signs the record of the export; None: it is not signed.

        Raises:
            WeightsError: there is no form for the model outside of Trainyard, or the weights are not complete.
        """
        family = FAMILY_TYPES[weights.family]
        make_names = FAMILIES[weights.family].hugging_face
        if make_names is None or not family.architectures:
            known = ", ".join(name for name, each in FAMILY_TYPES.items() if each.architectures)
            raise WeightsError(f"{weights.path}: model {weights.family} cannot be exported, only {known}")
        self._weights, self._target, self._dtype, self._key = weights, target, dtype, key
        self._names: HuggingFaceNames = make_names(weights.config)
        self._experts: int = getattr(weights.config, "experts", 0)
        self._shapes = parameter_shapes(weights.config)
        saved = weights.shapes()
        for name, shape in self._shapes.items():
            if saved.get(name) != shape:
                raise WeightsError(f"{weights.path}: the parameter {name} is absent; export another checkpoint")
        self._shards = _plan(self._shapes, DTYPES[dtype].itemsize, shard_bytes)
        # Files for an object store are written here, and each is uploaded when it is complete.
        own = cache_folder() / f"export-{os.getpid()}"
        self._folder = target / PARTIAL if isinstance(target, Path) else own

    @property
    def shards(self) -> int:
        """Number of files of tensors."""
        return len(self._shards)

    def begin(self) -> None:
        """Make an empty folder for the files; called by one process.

        Raises:
            OSError: the storage refuses.
        """
        if isinstance(self._target, ObjectPath):
            # Its shards are replaced one by one: what is there is incomplete from now on.
            (self._target / CONFIG).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def write_shards(
        self, share: int = 0, shares: int = 1, report: Progress | None = None, stops: Callable[[], bool] = bool
    ) -> None:
        """Write every `shares`-th shard, beginning with number `share`.

        Args:
            share: number of this process.
            shares: number of processes.
            report: receives the progress.
            stops: returns whether to stop before the next shard.

        Raises:
            WeightsError: a file of the weights is damaged.
            OSError: the storage refuses.
        """
        own = range(share, len(self._shards), shares)
        for done, number in enumerate(own):
            if stops():
                return
            if report is not None:
                report(done, len(own))
            path = self._folder / self._file(number)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                save_file(self._read(self._shards[number]), path, {"format": "pt"})
            except SafetensorError as error:
                raise OSError(str(error)) from error
            if isinstance(self._target, ObjectPath):
                (self._target / path.name).upload(path)
                path.unlink()
            else:
                _sync(path)
        if report is not None:
            report(len(own), len(own))

    def commit(self) -> None:
        """Write what belongs to the tensors, and make the export complete; called by one process after all shards.

        Raises:
            WeightsError: a shard is missing.
            OSError: the storage refuses.
        """
        folder = self._folder
        written = self._target if isinstance(self._target, ObjectPath) else folder
        for number in range(len(self._shards)):
            if not (written / self._file(number)).exists():
                raise WeightsError(
                    f"{written / self._file(number)} is missing, which another worker has written; mount the same "
                    f"volume at {self._target} in all workers"
                )
        if len(self._shards) > 1:
            _write_json(folder / INDEX, self._index())
        end = write_tokenizer(self._weights, folder)
        config = FAMILY_TYPES[self._weights.family].to_hugging_face(self._weights.config)
        if "vocab_size" in config:
            # transformers would assume other ids for fields that are absent, and train no token that is for padding.
            config |= {"bos_token_id": None, "eos_token_id": None if end is None else end.id, "pad_token_id": None}
            _write_json(folder / GENERATION_CONFIG, generation_config(self._weights, folder, end))
        if self._weights.record is not None:
            (folder / RUN_FILE).write_text(self._weights.record.text())
        # No class of transformers has a model of tables.
        if FAMILY_TYPES[self._weights.family].data_source == "table":
            write_program(self._weights, folder / PROGRAM, DTYPES[self._dtype])
        (folder / CARD).write_text(model_card(self._weights, self._names.architecture, self._dtype))
        _write_json(folder / CONFIG, {**config, "dtype": self._dtype})
        shards = [self._target / self._file(number) for number in range(len(self._shards))]
        add_record(folder, self._weights, self._key, [each for each in shards if isinstance(each, ObjectPath)])
        self._publish(folder)

    def _publish(self, folder: Path) -> None:
        """Replace the files of an earlier export by those of a folder, config.json last."""
        last = sorted(folder.iterdir(), key=lambda path: path.name == CONFIG)
        if isinstance(self._target, ObjectPath):
            self._upload(last)
            shutil.rmtree(folder, ignore_errors=True)
            return
        (self._target / CONFIG).unlink(missing_ok=True)
        for pattern in ("*.safetensors", INDEX, PROGRAM, RUN_FILE, RECORD_FILE):
            for old in self._target.glob(pattern):
                old.unlink()
        mode = (folder / CONFIG).stat().st_mode
        for path in last:
            # The library safetensors makes files that only their owner reads; a server may be another user.
            if path.stat().st_mode != mode:
                path.chmod(mode)
            _sync(path)
            path.replace(self._target / path.name)
        folder.rmdir()
        _sync(self._target)

    def _upload(self, files: Sequence[Path]) -> None:
        """Upload the files beside the shards in order, after what an earlier export has left is removed."""
        assert isinstance(self._target, ObjectPath)
        kept = {path.name for path in files} | {self._file(number) for number in range(len(self._shards))}
        for old in self._target.iterdir():
            stale = old.name.endswith(".safetensors") or old.name in (INDEX, PROGRAM, RUN_FILE)
            if stale and old.name not in kept:
                old.unlink()
        for path in files:
            (self._target / path.name).upload(path)

    def _file(self, number: int) -> str:
        if len(self._shards) == 1:
            return SINGLE
        return f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        """Return the tensors of a shard by their names there, in the type of the export."""
        values = {name: torch.empty(self._shapes[name], dtype=DTYPES[self._dtype]) for name in names}
        self._weights.load(values)
        tensors: dict[str, Tensor] = {}
        for name in names:
            value, there = values.pop(name), self._names.to_hugging_face(name, self._experts)
            # A stack of experts [experts, in, out] is one matrix [out, in] of each expert there.
            parts = [matrix.T.contiguous() for matrix in value] if value.ndim == 3 else [value]
            tensors |= dict(zip(there, parts, strict=True))
        return tensors

    def _index(self) -> dict[str, Any]:
        """Return the content of model.safetensors.index.json."""
        files = {
            there: self._file(number)
            for number, names in enumerate(self._shards)
            for name in names
            for there in self._names.to_hugging_face(name, self._experts)
        }
        count = sum(_count(shape) for shape in self._shapes.values())
        size = count * DTYPES[self._dtype].itemsize
        return {"metadata": {"total_size": size, "total_parameters": count}, "weight_map": files}


def export(
    weights: Weights,
    target: Location,
    dtype: Dtype = "float32",
    report: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights as a Hugging Face folder, in this process alone.

    Args:
        weights: what is exported.
        target: folder that is written; an export that it holds is replaced at the end.
        dtype: type of all tensors.
        report: receives the progress.
        shard_bytes: bytes of one file, unless a single parameter is larger.

    Raises:
        WeightsError: there is no form for the model outside of Trainyard, or the weights are damaged.
        OSError: the storage refuses.
    """
    weights.check()
    job = Export(weights, target, dtype, shard_bytes)
    job.begin()
    job.write_shards(report=report)
    job.commit()


def add_record(folder: Path, weights: Weights, key: Path | None, uploaded: Sequence[ObjectPath] = ()) -> None:
    """Write the record of an export that is complete otherwise, if that of its checkpoint is there.

    Raises:
        WeightsError: the record of the checkpoint, or the key, cannot be used.
        OSError: the storage refuses.
    """
    try:
        record_export(folder, weights.path, key, uploaded)
    except RecordError as error:
        raise WeightsError(str(error)) from error


def _plan(shapes: Mapping[str, Shape], width: int, limit: int) -> list[list[str]]:
    """Return the names of the parameters in each shard: neighbours, as many as a file of `limit` bytes holds."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        own = _count(shape) * width
        if shards[-1] and size + own > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    return shards


def _count(shape: Shape) -> int:
    return torch.Size(shape).numel()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
