"""Writes the record of each checkpoint as soon as it is complete, on rank 0."""

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

import trainyard
import trainyard_trainer
from trainyard.config import RunConfig
from trainyard.run_record import RunRecord
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import MANIFEST, Manifest
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.record.statement import (
    CheckpointDigest,
    Environment,
    RecordError,
    StepFigures,
    TrainingPredicate,
    file_digest,
    files_below,
    make_payload,
    read_statement,
    unsigned,
    write_envelope,
)
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import Location, ObjectPath

MAX_REPORTS = 10_000
"""Reports that a record keeps, the newest ones."""
MAX_CHECKPOINTS = 1_000
"""Earlier checkpoints that a record names, the newest ones."""
SIGNING_KEY = "spec.trainer.signingKeyFile"


class CheckpointRecorder(Observer):
    """Keeps the figures of reported steps, and writes them with all else that a checkpoint came from."""

    def __init__(
        self,
        root: Location,
        record: RunRecord,
        config: RunConfig,
        device: torch.device,
        resumed_step: int | None,
        initial_weights: str | None = None,
    ) -> None:
        """Prepare to record.

        Args:
            root: folder of the checkpoints.
            record: record of the run.
            config: configuration of the attempt.
            device: the device of this rank.
            resumed_step: step of the checkpoint that the attempt resumes from; None if it begins the run.
            initial_weights: digest of the weights of spec.trainer.model.from, if the attempt begins with them.

        Raises:
            ConfigError: the key that signs cannot be used.
        """
        self._root, self._run, self._config = root, record, config
        self._environment = Environment(device=device_name(device), threads=torch.get_num_threads())
        self._key: Path | None = None
        if config.trainer.signing_key_file is not None:
            self._key = Path(config.trainer.signing_key_file)
            self._check_key(self._key)
        self._code: dict[str, str] = {}
        self._reports: list[StepFigures] = []
        self._skipped: list[int] = []
        self._recorded = resumed_step or 0
        """Step of the last record."""
        self._checkpoints: tuple[CheckpointDigest, ...] = ()
        self._initial = initial_weights
        if resumed_step:
            self._continue_from(resumed_step)

    def _continue_from(self, step: int) -> None:
        """Continue the list of checkpoints with the one that the attempt resumes from."""
        folder = catalog.complete_folder(self._root, step)
        try:
            before = read_statement(folder)
            earlier = () if before is None else before.predicate.checkpoints
            self._checkpoints = (*earlier, self._digest(folder, Manifest.read(folder)))
            self._initial = None if before is None else before.predicate.initial_weights
        except (OSError, ValueError) as error:
            log.logger.warning("the record of the checkpoint of step %d is left out: %s", step, error)

    def reported(self, report: StepReport) -> None:
        """Keep the figures of a step."""
        self._reports.append(
            StepFigures(step=report.step, loss=_finite(report.loss), grad_norm=_finite(report.grad_norm))
        )

    def skipped(self, step: int, norm: float) -> None:
        """Keep the number of a step that has changed nothing."""
        self._skipped.append(step)

    def rolled_back(self, step: int) -> None:
        """Forget the steps that are made again."""
        self._reports = [figures for figures in self._reports if figures.step <= step]
        self._skipped = [skipped for skipped in self._skipped if skipped <= step]

    def checkpoint_saved(self, step: int, seconds: float, size: int | None) -> None:
        """Write the record of a checkpoint. A storage that fails costs the record, not the run."""
        folder = catalog.complete_folder(self._root, step)
        try:
            manifest = Manifest.read(folder)
            own = self._digest(folder, manifest)
            files = {name: file.sha256 or file_digest(folder / name) for name, file in manifest.files.items()}
            payload = make_payload({**files, MANIFEST: own.sha256}, self._predicate(manifest))
            write_envelope(folder, unsigned(payload) if self._key is None else _signed(payload, self._key))
        except (OSError, ValueError) as error:
            log.logger.warning("the record of the checkpoint of step %d could not be written: %s", step, error)
            return
        self._checkpoints = (*self._checkpoints, own)[-MAX_CHECKPOINTS:]
        self._reports = [figures for figures in self._reports if figures.step > step]
        self._skipped = [skipped for skipped in self._skipped if skipped > step]
        self._recorded = step

    def _predicate(self, manifest: Manifest) -> TrainingPredicate:
        self._code = self._code or code_digests(self._config)
        reports = [figures for figures in self._reports if figures.step <= manifest.step]
        return TrainingPredicate(
            run=self._run,
            step=manifest.step,
            samples=manifest.samples,
            tokens=manifest.tokens_consumed,
            phases=manifest.history,
            code=self._code,
            environment=self._environment,
            reported_after=self._recorded,
            reports=tuple(reports[-MAX_REPORTS:]),
            skipped=tuple(step for step in self._skipped if step <= manifest.step),
            initial_weights=self._initial,
            checkpoints=self._checkpoints,
            progress=manifest.progress,
            written=datetime.now(UTC).replace(microsecond=0),
        )

    def _digest(self, folder: Location, manifest: Manifest) -> CheckpointDigest:
        return CheckpointDigest(
            run=manifest.run or self._run.id, step=manifest.step, sha256=file_digest(folder / MANIFEST)
        )

    def _check_key(self, path: Path) -> None:
        from trainyard_trainer.record.signing import load_signer  # imported late: few runs are signed

        try:
            load_signer(path, SIGNING_KEY)
        except RecordError as error:
            raise ConfigError(str(error)) from error


def record_export(
    folder: Path, checkpoint: Location, key: Path | None = None, uploaded: Sequence[ObjectPath] = ()
) -> bool:
    """Write the record of files that were made from a checkpoint, beside them; False if the checkpoint has none.

    Args:
        folder: the files, complete; the record is about all of them.
        checkpoint: folder of the checkpoint.
        key: private key that signs the record; None: it is not signed.
        uploaded: other files of the export that are in an object store already.

    Raises:
        RecordError: the record of the checkpoint, or the key, cannot be used.
        OSError: the storage fails.
    """
    before = read_statement(checkpoint)
    if before is None or not (checkpoint / MANIFEST).exists():
        return False
    source = CheckpointDigest(
        run=before.predicate.run.id, step=before.predicate.step, sha256=file_digest(checkpoint / MANIFEST)
    )
    files = {name: file_digest(folder / name) for name in files_below(folder)}
    files |= {file.name: file_digest(file) for file in uploaded}
    predicate = before.predicate.replace(source=source, written=datetime.now(UTC).replace(microsecond=0))
    payload = make_payload(files, predicate)
    write_envelope(folder, unsigned(payload) if key is None else _signed(payload, key))
    return True


def code_digests(config: RunConfig) -> dict[str, str]:
    """Return the SHA-256 of the source files of the packages that train, and of the user's module, by name."""
    digests = {package.__name__: _package_digest(Path(str(package.__file__)).parent) for package in _PACKAGES}
    if config.trainer.module is not None:
        name = config.trainer.module.partition(":")[0]
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None and Path(found.origin).is_file():
            digests[name] = file_digest(Path(found.origin))
    return digests


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else 'cpu'}, {torch.backends.cpu.get_cpu_capability()}"


_PACKAGES = (trainyard, trainyard_trainer)


def _package_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def _signed(payload: bytes, key: Path) -> dict[str, object]:
    from trainyard_trainer.record.signing import load_signer, signed  # imported late: few runs are signed

    return signed(payload, load_signer(key, SIGNING_KEY))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
