"""The record of a run: what it is made of, in the file run.json beside its checkpoints."""

import json
import uuid
from typing import Any, Final, Protocol

from pydantic import Field, ValidationError

from trainyard.base import ApiModel, Timestamp
from trainyard.config import RunConfig
from trainyard.resume import Difference, differences

RUN_FILE: Final = "run.json"
TOKENIZER_FILE: Final = "tokenizer.json"
"""Tokenizer of the run, beside its record; absent if the data need no file to be read (bytes, tables)."""
CHAT_TEMPLATE_FILE: Final = "chat_template.jinja"
TOKENIZER_SIDE_FILES: Final = ("tokenizer_config.json", CHAT_TEMPLATE_FILE, "special_tokens_map.json")
"""Files beside a tokenizer.json by which transformers knows its special tokens and its chat template; each optional."""
FORMAT: Final = 1
"""Version of the format. Raise it when a reader that knows only the current one would misread a record. A reader
ignores fields that it does not know."""
MAX_CHANGES: Final = 1000
"""Changes, and attempts, that a record keeps, the newest ones."""


class DataRecord(ApiModel):
    """The data of a run."""

    fingerprint: int
    """63 bits that identify the samples."""
    samples: int
    """Number of samples, held-out ones included."""
    eval_samples: int
    """Number of held-out samples: the last ones."""
    sources: tuple[dict[str, Any], ...] = ()
    """What the samples come from, one entry for each source."""
    exclusion: int | None = None
    """63 bits that identify the samples that the newest attempt leaves out; absent if there are none."""


class TokenizerRecord(ApiModel):
    """The tokenizer of a run, a copy of which is beside the record."""

    sha256: str
    """SHA-256 of tokenizer.json, in hexadecimal digits."""


class BaseRecord(ApiModel):
    """The weights beside which a run trains adapters."""

    sha256: str
    """SHA-256 of what identifies them, in hexadecimal digits: see `trainyard_trainer.weights.adapted.digest`."""


class Change(ApiModel):
    """A value that changed when the run was resumed."""

    time: Timestamp
    """When the attempt began."""
    step: int
    """Optimizer steps done by then."""
    field: str
    """Name of the value: the field of the spec, where it is one."""
    before: Any = None
    """Value before; absent if there was none."""
    after: Any = None
    """Value after; absent if there is none."""


class Attempt(ApiModel):
    """An attempt of a run."""

    number: int
    """Its number, from 1; a job that resumes the run of another one counts from 1 again."""
    time: Timestamp
    """When it began."""
    step: int
    """Optimizer steps done by then."""


class RecordFile(Protocol):
    """A file of text, on a volume or in an object store."""

    def read_text(self, encoding: str) -> str:
        """Return its content."""


class RecordFolder(Protocol):
    """A folder, on a volume or in an object store."""

    def __truediv__(self, name: str, /) -> RecordFile:
        """Return a file of the folder."""


class RunRecord(ApiModel):
    """The contents of run.json, without its format version."""

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """Identity of the run: 32 hexadecimal digits, the same for all its attempts."""
    created: Timestamp
    """When its first attempt began."""
    parent: str | None = None
    """Identity of the run whose checkpoint it began with; absent if it began with initial values."""
    config: dict[str, Any]
    """Resolved configuration of the newest attempt (`trainyard.config.RunConfig`), the seed included."""
    data: DataRecord
    """Its data."""
    tokenizer: TokenizerRecord | None = None
    """Its tokenizer; absent if the data need none from a file."""
    base: BaseRecord | None = None
    """The frozen weights of a run that trains adapters; absent if it trains all parameters."""
    versions: dict[str, str]
    """Versions of trainyard, torch and python in the newest attempt."""
    image: str | None = None
    """Image of the newest attempt; absent outside of a cluster."""
    changes: tuple[Change, ...] = ()
    """What has changed since the first attempt, the oldest change first."""
    attempts: tuple[Attempt, ...] = ()
    """All attempts, the first one first; absent in records of older versions."""

    @classmethod
    def read(cls, folder: "RecordFolder") -> "RunRecord | None":
        """Read the record of the run in a folder; None if there is none.

        Raises:
            ValueError: it is damaged, or a newer version of Trainyard has written it; the message names the fix.
            OSError: the storage fails.
        """
        path = folder / RUN_FILE
        try:
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(_damage(path, str(error))) from error
        version = content.pop("format", None) if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise ValueError(
                f"{path} has the format {version}, but this version of Trainyard reads formats up to {FORMAT}; use the "
                "version that wrote it (spec.image), or choose another spec.checkpoint volume"
            )
        try:
            return cls.model_validate(content, extra="ignore")
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(_damage(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")) from error

    def text(self) -> str:
        """Return the content of run.json."""
        return json.dumps({"format": FORMAT, **self.to_dict()}, indent=1) + "\n"

    def values(self) -> dict[str, Any]:
        """Return all values that the table of `trainyard.resume` decides about: configuration, data, versions, image.

        A configuration of another version gets the defaults of fields that it does not have.
        """
        own = self.to_dict()
        try:
            config = RunConfig.model_validate(self.config, extra="ignore").to_dict()
        except ValidationError:
            config = self.config
        data = {"fingerprint": self.data.fingerprint}
        return {**config, "data": data, "versions": self.versions, **_given(own, "tokenizer", "base", "image")}

    def continued_by(self, attempt: "RunRecord", found: list[Difference], step: int) -> "RunRecord":
        """Return the record of this run after a new attempt, whose own record says what it is made of.

        Args:
            attempt: record of the attempt as if it had begun the run.
            found: differences between the two.
            step: optimizer steps done when the attempt began.
        """
        changes = [
            Change(time=attempt.created, step=step, field=d.field, before=d.before, after=d.after) for d in found
        ]
        begun = [each.replace(step=step) for each in attempt.attempts]
        return attempt.replace(
            id=self.id,
            created=self.created,
            parent=self.parent,
            changes=(*self.changes, *changes)[-MAX_CHANGES:],
            attempts=(*self.attempts, *begun)[-MAX_CHANGES:],
        )


def compare(run: RunRecord, attempt: RunRecord) -> list[Difference]:
    """Return the differences between a run and an attempt that is to resume it."""
    absent = {"tokenizer": None, "base": None, "image": None}
    return differences(absent | run.values(), absent | attempt.values())


def compare_config(run: RunRecord, config: RunConfig) -> list[Difference]:
    """Return the differences between the configuration of a run and one that is to resume it."""
    return differences(run.values(), config.with_sizes_of(run.config.get("model", {})).to_dict())


def _given(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _damage(path: object, problem: str) -> str:
    return f"{path} cannot be read ({problem}); restore it, or remove it to resume without comparing configurations"
