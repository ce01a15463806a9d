"""Writes the adapters of a run as PEFT reads them: adapter_config.json, adapter_model.safetensors and the tokenizer."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from trainyard.run_record import RUN_FILE
from trainyard_trainer.data.downloads import cache_folder
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.models.lora import PEFT_CONFIG, save_peft
from trainyard_trainer.runtime.object_store import Location, ObjectPath
from trainyard_trainer.weights.adapted import AdaptedWeights, named_base
from trainyard_trainer.weights.export import PARTIAL, Progress, add_record
from trainyard_trainer.weights.tokenizer_files import write_tokenizer
from trainyard_trainer.weights.weights import Weights, WeightsError


class AdapterExport:
    """An export of adapters, which are small: one process writes them, as the last part of an export (`commit`).

    It has the same parts as `trainyard_trainer.weights.export.Export`.
    """

    shards = 0
    """Files that processes write together."""

    def __init__(self, weights: Weights, target: Location, key: Path | None = None) -> None:
        """Plan the export; `key`: private key that signs its record, None: it is not signed.

        Raises:
            WeightsError: the run has trained all parameters.
        """
        if not isinstance(weights, AdaptedWeights):
            raise WeightsError(f"{weights.path} holds no adapters; export it in the format huggingface")
        self._weights, self._target, self._key = weights, target, key
        own = cache_folder() / f"export-{os.getpid()}"
        self._folder = target / PARTIAL if isinstance(target, Path) else own
        """Folder in which files are written, on this machine."""

    def begin(self) -> None:
        """Make an empty folder for the files.

        Raises:
            OSError: the storage refuses.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def write_shards(
        self, share: int = 0, shares: int = 1, report: Progress | None = None, stops: Callable[[], bool] = bool
    ) -> None:
        """Do nothing: there is no part for several processes."""

    def commit(self) -> None:
        """Write all files, and make the export complete; adapter_config.json comes last.

        Raises:
            WeightsError: a file of the checkpoint is damaged.
            OSError: the storage refuses.
        """
        weights, folder = self._weights, self._folder
        make_names = FAMILIES[weights.family].hugging_face
        assert make_names is not None, "a family that supports adapters has names"
        base = named_base(weights.record) or str(weights.base.path)
        save_peft(folder, weights.adapter_tensors(), weights.lora, make_names(weights.config), base)
        write_tokenizer(weights, folder)
        if weights.record is not None:
            (folder / RUN_FILE).write_text(weights.record.text())
        add_record(folder, weights, self._key)
        (self._target / PEFT_CONFIG).unlink(missing_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == PEFT_CONFIG):
            if isinstance(self._target, ObjectPath):
                (self._target / path.name).upload(path)
                path.unlink()
            else:
                path.replace(self._target / path.name)
        folder.rmdir()


def export_adapters(weights: Weights, target: Location) -> None:
    """Write the adapters of a run as PEFT reads them, in this process alone.

    Raises:
        WeightsError: the run has trained all parameters, or its weights are damaged.
        OSError: the storage refuses.
    """
    job = AdapterExport(weights, target)
    weights.check()
    job.begin()
    job.commit()
