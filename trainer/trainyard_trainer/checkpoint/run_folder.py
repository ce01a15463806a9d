"""The folder of a run: its record and its tokenizer, beside the checkpoints (see `trainyard.run_record`).

CHECKPOINTS/run.json                  what the run is made of
CHECKPOINTS/tokenizer.json            its tokenizer, if its data need one, with the files beside it that describe it
CHECKPOINTS/privacy.json              the ledger of a private run, see `privacy.ledger`
CHECKPOINTS/step-00000100/            see `checkpoint.catalog`
"""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from trainyard import __version__
from trainyard.config import RunConfig
from trainyard.protocol.constants import ENV_IMAGE
from trainyard.resume import Effect, belongs_to_weights, refusals
from trainyard.run_record import (
    CHAT_TEMPLATE_FILE,
    RUN_FILE,
    TOKENIZER_FILE,
    TOKENIZER_SIDE_FILES,
    Attempt,
    DataRecord,
    RunRecord,
    TokenizerRecord,
    compare,
)
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.outcome import first_line
from trainyard_trainer.data.downloads import local_path
from trainyard_trainer.data.tokenizer import TokenizerFile
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import Location, ObjectPath


def describe_attempt(
    config: RunConfig, data: DataRecord, tokenizer: TokenizerFile | None, attempt: int = 1
) -> RunRecord:
    """Return the record of a run that begins with this attempt."""
    now = datetime.now(UTC).replace(microsecond=0)
    return RunRecord(
        created=now,
        config=config.to_dict(),
        data=data,
        tokenizer=None if tokenizer is None else TokenizerRecord(sha256=tokenizer.sha256),
        versions={"trainyard": __version__, "torch": torch.__version__, "python": platform.python_version()},
        image=os.environ.get(ENV_IMAGE) or None,
        attempts=(Attempt(number=attempt, time=now, step=0),),
    )


class RunFolder:
    """Record and tokenizer of the run in a folder of checkpoints."""

    def __init__(self, root: Location) -> None:
        """Read the record of the run that has checkpoints in the folder.

        Raises:
            ConfigError: the record is damaged, or a newer version has written it.
            OSError: the storage fails.
        """
        self._root = root
        self._run: RunRecord | None = None
        """Record of the run that the attempt resumes; None without a checkpoint, or for checkpoints without one."""
        if catalog.complete_steps(root):
            try:
                self._run = RunRecord.read(root)
            except ValueError as error:
                raise ConfigError(f"spec.checkpoint: {error}") from error
        path = root / TOKENIZER_FILE
        has_tokenizer = self._run is not None and self._run.tokenizer is not None and path.exists()
        local = local_path(str(path), "spec.checkpoint", beside=TOKENIZER_SIDE_FILES) if has_tokenizer else None
        self.tokenizer = None if local is None else Path(local)
        """Tokenizer of the run that the attempt resumes; None if it has none."""

    @property
    def run(self) -> str | None:
        """Identity of the run that the attempt resumes; None if there is no record of one."""
        return None if self._run is None else self._run.id

    @property
    def existing(self) -> RunRecord | None:
        """Record of the run that the attempt resumes; None if there is none."""
        return self._run

    def check(self, attempt: RunRecord, *, announce: bool, evaluates: bool = False) -> None:
        """Check that an attempt can resume the run of this folder, if there is one.

        `announce`: whether to log what has changed, as one rank does for all. `evaluates`: the attempt evaluates the
        model, so that only what belongs to the weights must be the same.

        Raises:
            ConfigError: the table of `trainyard.resume` refuses a difference; the message names each of them.
        """
        if self._run is None:
            return
        found = compare(self._run, attempt)
        if evaluates:
            found = [difference for difference in found if belongs_to_weights(difference)]
        if problem := refusals(found, f"the run of {self._root / RUN_FILE}"):
            raise ConfigError(problem)
        for difference in found if announce else ():
            if difference.rule.effect is Effect.WARNING:
                log.logger.warning("%s", difference)
            else:
                log.info(f"changed since the last attempt: {difference}")

    def record(self, attempt: RunRecord, step: int, parent: str | None) -> RunRecord:
        """Return the record of the run after the beginning of an attempt.

        Args:
            attempt: record of the attempt, as if it had begun the run.
            step: optimizer steps done.
            parent: identity of the run that wrote the checkpoint of this step, if it is known.
        """
        if self._run is None:
            return attempt.replace(parent=parent)
        return self._run.continued_by(attempt, compare(self._run, attempt), step)

    def write(self, record: RunRecord, tokenizer: TokenizerFile | None) -> None:
        """Write record and tokenizer, each atomically, the record last.

        Raises:
            OSError: the storage refuses.
        """
        if tokenizer is not None:
            for name in TOKENIZER_SIDE_FILES:
                if (beside := tokenizer.path.with_name(name)).exists():
                    self.replace(name, beside.read_bytes())
            # That of the run, which may be another one than that beside its tokenizer.
            if tokenizer.chat_template is not None:
                self.replace(CHAT_TEMPLATE_FILE, tokenizer.chat_template.encode())
            self.replace(TOKENIZER_FILE, tokenizer.path.read_bytes())
        self.replace(RUN_FILE, record.text().encode())

    def read(self, name: str) -> bytes | None:
        """Return the content of a file of the run; None if there is none.

        Raises:
            OSError: the storage fails.
        """
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, name: str, content: bytes) -> None:
        """Write a file of the run atomically; it is durable when this returns.

        Raises:
            OSError: the storage refuses.
        """
        if isinstance(self._root, ObjectPath):
            (self._root / name).write_bytes(content)
            return
        part = self._root / f"{name}.part"
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._root / name)
        catalog.sync_folder(self._root)


class RunRecorder(Observer):
    """Writes the record of a run at its beginning, on rank 0. Storage that fails then is tried again later.

    The end of the run waits for it (see `Saver.finish`), since a checkpoint without its record is not enough to use it.
    """

    def __init__(self, folder: RunFolder, record: RunRecord, tokenizer: TokenizerFile | None) -> None:
        self._folder, self._record, self._tokenizer = folder, record, tokenizer
        self._written = False
        self.problem = ""
        """Why the record could not be written; empty if it is."""
        self.write()

    def checkpoint_saved(self, step: int, seconds: float, size: int | None) -> None:
        """Write the record if it could not be written before."""
        self.write()

    def write(self) -> bool:
        """Write the record unless it is written; return whether it is."""
        if self._written:
            return True
        try:
            self._folder.write(self._record, self._tokenizer)
        except OSError as error:
            self.problem = f"{RUN_FILE} could not be written: {first_line(error)}"
            log.logger.warning("%s", self.problem)
        else:
            self._written, self.problem = True, ""
        return self._written
