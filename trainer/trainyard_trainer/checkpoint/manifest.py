"""The manifest of a checkpoint: which run it belongs to, how far that run is, and the checksums of its files.

Free of torch.
"""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.protocol.progress import Progress
from trainyard.resume import differences, refusals
from trainyard_trainer.data.timeline import Phase
from trainyard_trainer.privacy.ledger import PrivacySpent
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import Location

MANIFEST = "manifest.json"
FORMAT = 2
"""Version of the format. Raise it when a trainer that knows only the current one would misread a checkpoint. A reader
ignores fields that it does not know."""


@dataclass(frozen=True)
class FileChecksum:
    """Size in bytes and CRC-32 of one file of a checkpoint, with which damage is found."""

    bytes: int
    crc32: int
    sha256: str | None = None
    """SHA-256 in hexadecimal digits, for the record of the run; None if an older version wrote the file."""


class ConvergenceState(ApiModel):
    """State of `stopping.Convergence` after the evaluations so far."""

    lowest: float | None = None
    """Lowest evaluation loss; None before the first evaluation."""
    stale: int = 0
    """Evaluations since the loss last improved."""


class Manifest(ApiModel):
    """The contents of manifest.json, without its format version."""

    run: str | None = None
    """Identity of the run (see `trainyard.run_record`); None in format 1."""
    step: int
    """Optimizer steps done."""
    samples: int
    """Samples consumed by these steps, and by steps before a rollback; counted in samples of the present length."""
    tokens: int | None = None
    """Tokens consumed likewise, whatever the sequence length was; None in format 1."""
    phases: tuple[Phase, ...] = ()
    """Batch and sequence length of all steps so far; empty in format 1."""
    model: dict[str, Any]
    """Configuration of the model, all presets resolved."""
    optimizer: str
    """Name of the optimizer."""
    data: int
    """Fingerprint of the data set (63 bits)."""
    convergence: ConvergenceState = ConvergenceState()
    stopped_because: str | None = None
    """Why an evaluation has ended the training; None if it has not."""
    bad_steps: int = 0
    """Consecutive bad steps that precede this checkpoint."""
    norms: tuple[float, ...] = ()
    """Gradient norms of the last good steps, with which spikes are compared; empty in format 1."""
    privacy: PrivacySpent | None = None
    """What the parameters have cost of a privacy budget; None for a run without one."""
    progress: Progress | None = None
    """Last report of the run; None before the first one."""
    files: dict[str, FileChecksum] = Field(default_factory=dict)
    """Size and checksum of each file by name; complete once the checkpoint is committed."""

    @classmethod
    def read(cls, folder: Location) -> "Manifest":
        """Read the manifest of a complete checkpoint.

        Raises:
            ConfigError: a newer version of the trainer has written it.
            OSError, ValueError: it is damaged.
        """
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
        version = content.pop("format") if isinstance(content, dict) and "format" in content else None
        if isinstance(version, int) and version > FORMAT:
            raise ConfigError(
                f"spec.checkpoint: {folder} has the format {version}, but this version of the trainer reads formats up "
                f"to {FORMAT}; use the version that wrote it (spec.image), or choose another spec.checkpoint volume"
            )
        if version not in range(1, FORMAT + 1):
            raise ValueError(f"{folder / MANIFEST} has the format {version}, which does not exist")
        try:
            return cls.model_validate(content, extra="ignore")
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{folder / MANIFEST}: {field}: {first['msg']}") from error

    def content(self) -> dict[str, Any]:
        """Return the manifest as JSON, with its format version first."""
        return {"format": FORMAT, **self.to_dict()}

    @property
    def tokens_per_sample(self) -> int:
        """Tokens of one of the `samples`."""
        return self.phases[-1].tokens_per_sample if self.phases else int(self.model.get("sequenceLength", 1))

    @property
    def tokens_consumed(self) -> int:
        """Tokens consumed; a run of format 1 has kept its sequence length."""
        return self.samples * self.tokens_per_sample if self.tokens is None else self.tokens

    @property
    def history(self) -> tuple[Phase, ...]:
        """Batch and sequence length of all steps so far; a run of format 1 is assumed to have kept its batch."""
        if self.phases or self.step == 0:
            return self.phases
        batch, length = self.samples // self.step, self.tokens_per_sample
        return (Phase(step=0, samples=0, tokens=0, batch=batch, tokens_per_sample=length),)

    def check_compatible(self, config: RunConfig, folder: Location) -> None:
        """Check that a run of this configuration can resume from the checkpoint in `folder`, or evaluate its model.

        The checkpoint may have no run.json beside it, or be that of another run. An evaluation needs no optimizer.

        Raises:
            ConfigError: it belongs to another model or optimizer; the message names each field and both values.
        """
        saved = {"model": config.family.completed(self.model), "trainer": {"optimizer": {"name": self.optimizer}}}
        wanted: dict[str, Any] = {"model": config.model.to_dict()}
        if config.trainer.task != "evaluate":
            wanted["trainer"] = {"optimizer": {"name": config.trainer.optimizer.name}}
        if problem := refusals(differences(saved, wanted), f"the checkpoint {folder}"):
            raise ConfigError(problem)
