"""Data for a folder of weights, and its evaluation in one process."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

from trainyard.admission import admit
from trainyard.config import RunConfig
from trainyard.manifest import ManifestError
from trainyard.models import FAMILIES as FAMILY_TYPES
from trainyard.protocol import constants
from trainyard.resolve import resolve
from trainyard.resource.training import TrainerSpec
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.evaluation_sets import EvaluationSet, evaluation_sets, sample_count
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.table import Table
from trainyard_trainer.evaluation.report import Subject, describe_samples
from trainyard_trainer.evaluation.scores import Scores
from trainyard_trainer.evaluation.scoring import score
from trainyard_trainer.parallel.forward_backward import make_forward_backward
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.plugin import Plugin, load_plugin, prepare_samples
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.runtime.world import World
from trainyard_trainer.weights.folder import LoadedModel, Weights, load_model, open_weights

SEQUENCE_LENGTH = 1024
"""Most tokens of a sample that are chosen for a model that no run of ours has trained."""
_SOURCES = {
    ".npz": "table",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".bin": "tokens",
}
"""Kinds of data by the end of a file's name; anything else is text."""
_STEP = re.compile(r"step-(\d+)")
"""Name of the folder of a checkpoint."""
_DATA_SET_FILES = ("dataset_info.json", "dataset_dict.json")
"""Files in a folder of datasets.save_to_disk."""


@dataclass(frozen=True)
class DataChoice:
    """What a folder of weights is evaluated on; without a choice, on the data of the run that has trained it."""

    path: Location | None = None
    """File or folder, all of whose samples are used."""
    trainer: TrainerSpec | None = None
    """spec.trainer of a manifest, whose data and module are used."""


@dataclass(frozen=True)
class FolderData:
    """A folder of weights and its data."""

    weights: Weights
    config: RunConfig
    """Configuration of one process, without an optimizer."""
    samples: Samples
    plugin: Plugin
    evaluated: Sequence[EvaluationSet]
    """Samples to use."""

    def subject(self) -> Subject:
        """Return what a report about this is about."""
        relation = describe_samples(self.weights.record, self.samples, sample_count(self.evaluated))
        return folder_subject(self.weights, str(self.samples), relation)

    def load(self, device: torch.device) -> LoadedModel:
        """Return the model, whole on a device."""
        length = getattr(self.config.model, "sequence_length", None)
        return load_model(self.weights.path, device, sequence_length=length)


def folder_subject(weights: Weights, data: str, samples: str) -> Subject:
    """Return what a report about a folder of weights is about; `data` and `samples`: see `Subject`."""
    step = _STEP.fullmatch(weights.path.name)
    return Subject(
        weights=str(weights.path),
        model=weights.config.name,
        step=None if step is None else int(step[1]),
        run=weights.run,
        data=data,
        samples=samples,
    )


def open_folder(
    path: Location,
    choice: DataChoice,
    limit: int | None = None,
    report: Callable[[float, float], None] | None = None,
) -> FolderData:
    """Return a folder of weights with its data, prepared.

    Args:
        path: folder of weights, see `weights.folder.open_weights`.
        choice: its data.
        limit: most samples, see `data.evaluation_sets`; None: all.
        report: receives the share of the preparation that is done, and seconds.

    Raises:
        ValueError: there are no weights, or no such data, or the data do not fit the model.
    """
    weights = open_weights(path)
    record = weights.record
    try:
        config = _config(weights, choice)
    except ManifestError as error:
        raise ConfigError("; ".join(error.problems)) from error
    plugin = load_plugin(config)
    trained_on = () if record is None else record.data.sources
    samples = prepare_samples(config, plugin, report, weights.tokenizer, trained_on)
    _check_sizes(weights, samples)
    return FolderData(weights, config, samples, plugin, evaluation_sets(samples.subsets, limit))


def evaluate_folder(data: FolderData, report: Callable[[int], None] | None = None) -> Scores:
    """Return the scores of a model in this process, on a GPU if there is one.

    `report`: receives the number of samples of each batch that is done.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(rank=0, local_rank=0, size=1, local_size=1, device=device)
    model = data.load(device).module
    batches = Batches(data.samples, data.config, world)
    mesh = RankMesh(data.config.mesh, world)
    passes = make_forward_backward(data.config, mesh, [model], device, batches, data.plugin.loss)
    classes = data.samples.class_count if isinstance(data.samples, Table) else None
    return score(passes, batches, world, classes, True, data.plugin, data.evaluated, report)


def _config(weights: Weights, choice: DataChoice) -> RunConfig:
    """Return the configuration of one process that evaluates the weights.

    Raises:
        ConfigError: nothing says which data to use.
        ManifestError: data and model do not fit together.
    """
    record = weights.record
    trained = {} if record is None else record.config.get("trainer", {})
    trainer = trained if choice.trainer is None else choice.trainer.to_dict()
    data = dict(trainer.get("data", {}))
    if choice.path is not None:
        data = _data_of_path(choice.path, data)
    if not Path(data.get("cache", "/")).exists():
        del data["cache"]  # a folder of the workers
    if not data:
        raise ConfigError(f"{weights.path} has no run.json that names data; name a file or a folder with --data")
    kept = {name: trainer[name] for name in ("module", "options") if name in trainer}
    on_gpu = torch.cuda.is_available()
    spec = {
        **kept,
        "task": "evaluate",
        "model": _model_fields(weights),
        "data": data if data.get("source") == "table" else data | _token_fields(weights, data),
        "seed": trained.get("seed", 0),
        "precision": trained.get("precision", "bfloat16") if on_gpu else "float32",
    }
    body = {
        "apiVersion": f"{constants.GROUP}/{constants.VERSION}",
        "kind": constants.KIND,
        "metadata": {"name": "evaluation"},
        "spec": {"trainer": spec, "checkpoint": {"volume": {"emptyDir": {}}}},
    }
    return resolve(admit(body, memory=False)).replace(model=weights.config)


def _data_of_path(path: Location, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return spec.trainer.data for a path, all of whose samples are used; the rest is as the model was trained."""
    if not path.exists():
        raise ConfigError(f"--data: {path} does not exist; correct the path")
    suffixes = [suffix for suffix in PurePath(path.name).suffixes if suffix not in (".gz", ".zst", ".bz2", ".lz4")]
    source = _SOURCES.get(suffixes[-1] if suffixes else "", "text")
    if path.is_dir():
        ends = [PurePath(name).suffix for name in sorted(file.name for file in path.iterdir())]
        source = next((_SOURCES[end] for end in ends if end in _SOURCES), "text")
        if any((path / name).exists() for name in _DATA_SET_FILES):
            source = "huggingface"
    if source == "jsonl" and trained.get("source") == "chat":
        source = "chat"
    kept = ("field", "tokenType", "documents", "endToken", "endTokenId", "sequenceLength")
    place = path.absolute() if isinstance(path, Path) else path
    return {"source": source, "path": str(place), **{k: trained[k] for k in kept if k in trained}}


def _token_fields(weights: Weights, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of spec.trainer.data that follow from the weights: tokenizer, vocabulary, sequence length."""
    config = weights.config.to_dict()
    if "vocabSize" not in config:
        return {}
    fields: dict[str, Any] = {"vocabSize": config["vocabSize"]}
    if weights.tokenizer is not None:
        fields |= {"tokenizer": "file", "tokenizerFile": str(weights.tokenizer.absolute())}
    elif "tokenizer" not in data and weights.record is None and data.get("source") != "tokens":
        raise ConfigError(f"{weights.path} has no tokenizer.json, without which text has no tokens; add it")
    else:
        fields |= {"tokenizer": "byte"}
    longest = config["sequenceLength"]
    length = data.get("sequenceLength") or (longest if weights.record is not None else min(longest, SEQUENCE_LENGTH))
    return {**fields, "sequenceLength": length}


def _model_fields(weights: Weights) -> dict[str, Any]:
    """Return spec.trainer.model for resolved sizes."""
    config = weights.config.to_dict()
    fields = FAMILY_TYPES[weights.config.name].fields.model_fields.values()
    return {"name": config["name"], **{f.alias: config[f.alias] for f in fields if f.alias in config}}


def _check_sizes(weights: Weights, samples: Samples) -> None:
    """Check that a table has the columns and classes of the model, also where no record says what these are.

    Raises:
        ConfigError: it has others.
    """
    if not isinstance(samples, Table):
        return
    config = weights.config.to_dict()
    if (samples.width, samples.class_count) != (config.get("features"), config.get("classes")):
        raise ConfigError(
            f"the data has {samples.width} columns and {samples.class_count} classes, but the model was trained on "
            f"{config.get('features')} and {config.get('classes')}; choose other data"
        )
