"""Statements of in-toto (https://in-toto.io/Statement/v1) about the files of a folder, in an envelope (DSSE).

Free of torch.
"""

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from trainyard.base import ApiModel, Timestamp
from trainyard.protocol.progress import Progress
from trainyard.run_record import RunRecord
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.data.timeline import Phase
from trainyard_trainer.runtime.object_store import Location, ObjectPath

RECORD_FILE: Final = "record.intoto.json"
"""Name of the record in a folder, about all other files in it."""
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://trainyard.dev/training/v1"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
CHECKPOINTS: Final = "checkpoints"
"""Folder of the checkpoints in a folder of `trainyard run`."""
_CHUNK = 1 << 22


class RecordError(ValueError):
    """A record or a key cannot be used. The message has one line, with the fix."""


class VerificationFailed(ValueError):
    """Something is not what its record says. The message has one line."""


class StepFigures(ApiModel):
    """What a step was reported with (spec.trainer.logEverySteps), not rounded."""

    step: int
    """Number of the step, from 1."""
    loss: float | None = None
    """Mean loss over the tokens of the global batch, in nats; absent if it was not finite."""
    grad_norm: float | None = None
    """Norm of the gradient before clipping; absent if it was not finite."""


class CheckpointDigest(ApiModel):
    """A checkpoint, by the digest of its manifest, which has the digests of its other files."""

    run: str
    """Identity of the run that wrote it."""
    step: int
    """Optimizer steps done."""
    sha256: str
    """SHA-256 of its manifest.json, in hexadecimal digits."""


class Environment(ApiModel):
    """What computed: the same configuration gives the same bits only in the same environment."""

    device: str
    """Name of the GPU, or of the processor."""
    threads: int
    """Threads of a rank that compute on the processor."""


class TrainingPredicate(ApiModel):
    """How weights came to be."""

    run: RunRecord
    """The run: configuration, data, versions, image, parent, attempts and changes."""
    step: int
    """Optimizer steps done."""
    samples: int
    """Samples consumed by these steps, counted in samples of the last phase."""
    tokens: int
    """Tokens consumed likewise."""
    phases: tuple[Phase, ...] = ()
    """Which samples the steps have consumed: number i in the order of the run, from the first of a phase on."""
    code: dict[str, str]
    """SHA-256 of the source files of each package that trained, and of the user's module."""
    environment: Environment
    """What rank 0 computed on."""
    reported_after: int = 0
    """Step of the record before this one, which has the figures of earlier steps."""
    reports: tuple[StepFigures, ...] = ()
    """Figures of the steps since then."""
    skipped: tuple[int, ...] = ()
    """Steps since then that changed nothing, because their gradient was NaN, Inf or a spike on any rank."""
    initial_weights: str | None = None
    """SHA-256 of the manifest, or of sizes and blocks of the files, of the weights that the run began with
    (spec.trainer.model.from); absent for random ones."""
    checkpoints: tuple[CheckpointDigest, ...] = ()
    """Earlier checkpoints, the oldest first, those of parents included."""
    progress: Progress | None = None
    """Last report and last evaluation."""
    source: CheckpointDigest | None = None
    """Checkpoint that the files were made from; absent for a checkpoint itself."""
    written: Timestamp
    """When the record was written."""


@dataclass(frozen=True)
class Statement:
    """A record that was read."""

    folder: Location
    subjects: dict[str, str]
    """SHA-256 of each file that the record is about, by its path in the folder."""
    predicate: TrainingPredicate
    envelope: dict[str, Any]
    """The envelope as JSON."""

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Identifiers of the keys that have signed it."""
        return tuple(str(signature.get("keyid", "")) for signature in self.envelope["signatures"])


def make_payload(files: Mapping[str, str], predicate: TrainingPredicate) -> bytes:
    """Return a statement as JSON; `files`: SHA-256 of each file, by its path in the folder."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": files[name]}} for name in sorted(files)],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate.to_dict(),
    }
    return json.dumps(statement, allow_nan=False).encode()


def unsigned(payload: bytes) -> dict[str, Any]:
    """Return the envelope of a payload, without a signature."""
    return {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": []}


def write_envelope(folder: Location, envelope: Mapping[str, Any]) -> None:
    """Write the record of a folder, atomically.

    Raises:
        OSError: the storage refuses.
    """
    if isinstance(folder, ObjectPath):
        (folder / RECORD_FILE).write_bytes(json.dumps(envelope).encode())
        return
    part = folder / f"{RECORD_FILE}.part"
    with part.open("w") as file:
        json.dump(envelope, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / RECORD_FILE)


def read_statement(folder: Location) -> Statement | None:
    """Read the record of a folder; None if there is none.

    Raises:
        RecordError: it is not a record of Trainyard.
        OSError: the storage fails.
    """
    path = folder / RECORD_FILE
    try:
        envelope = json.loads(path.read_text("utf-8"))
        payload = json.loads(base64.b64decode(envelope["payload"], validate=True))
        signatures = [signature["sig"] for signature in envelope["signatures"]]
        if envelope["payloadType"] != PAYLOAD_TYPE or payload["_type"] != STATEMENT_TYPE:
            raise ValueError(f"it is of type {envelope['payloadType']}, {payload['_type']}")
        if payload["predicateType"] != PREDICATE_TYPE or not all(isinstance(text, str) for text in signatures):
            raise ValueError(f"its predicate is of type {payload['predicateType']}")
        subjects = {str(subject["name"]): str(subject["digest"]["sha256"]) for subject in payload["subject"]}
        # A later version may have more fields.
        predicate = TrainingPredicate.model_validate(payload["predicate"], extra="ignore")
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"predicate.{field}: {first['msg']}") from error
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise _damaged(path, str(error)) from error
    return Statement(folder, subjects, predicate, envelope)


def read_predicate(folder: Location) -> TrainingPredicate | None:
    """Return what the record of a folder says; None if there is none. Raises what `read_statement` does."""
    statement = read_statement(folder)
    return None if statement is None else statement.predicate


def records_of(path: Location) -> list[Statement]:
    """Return the records of a checkpoint, of an export, or of all checkpoints of a run, the oldest first.

    Raises:
        RecordError: there is none, or one cannot be read.
    """
    if (own := read_statement(path)) is not None:
        return [own]
    for root in (path, path / CHECKPOINTS):
        folders = [catalog.complete_folder(root, step) for step in reversed(catalog.complete_steps(root))]
        found = [statement for folder in folders if (statement := read_statement(folder)) is not None]
        # One that was removed must not go unnoticed beside others.
        if found and len(found) < len(folders):
            missing = next(folder for folder in folders if not (folder / RECORD_FILE).exists())
            raise RecordError(f"{missing} has no {RECORD_FILE}, as the other checkpoints have; restore it")
        if found:
            return found
    raise RecordError(
        f"{path} has no {RECORD_FILE}; name a checkpoint, an export, or a run that has written checkpoints"
    )


def file_digest(path: Location) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_below(folder: Location) -> list[str]:
    """Return the paths of all files in a folder, relative to it and sorted, except that of its record."""
    if isinstance(folder, ObjectPath):
        names = [str(path).removeprefix(f"{folder}/") for path in folder.files()]
    else:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    return sorted(name for name in names if name != RECORD_FILE)


def _damaged(path: Location, problem: str) -> RecordError:
    return RecordError(f"{path} is not a record of Trainyard ({problem}); restore it, or remove it")
