"""The ledger of a privacy budget: the file privacy.json beside the checkpoints of a run. Free of torch."""

import json
from typing import Final, Protocol

from pydantic import Field, ValidationError

from trainyard.base import ApiModel
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.secret_words import KEY_BYTES

LEDGER_FILE: Final = "privacy.json"
FORMAT: Final = 1
"""Version of the format. Raise it when a reader that knows only the current one would misread a ledger."""


class Charge(ApiModel):
    """Consecutive steps that were made, or may have been made, under one configuration."""

    configuration: str
    """Digest of everything that the steps follow from, besides the key and the layout."""
    first: int
    """Number of the first step, from 1."""
    steps: int
    """Number of steps."""
    sample_rate: float
    """Probability with which a sample takes part in a step."""
    noise_multiplier: float
    """Standard deviation of the noise, divided by the largest norm of a sample's gradient."""

    @property
    def last(self) -> int:
        """Number of the last step; that before the first one if there is none."""
        return self.first + self.steps - 1


class PrivacySpent(ApiModel):
    """What the parameters of a checkpoint have cost."""

    epsilon: float
    """Epsilon spent."""
    delta: float
    """Delta of the budget."""
    charges: tuple[Charge, ...]
    """The steps that it was spent for."""


class Ledger(ApiModel):
    """All steps that have been charged to the budget of a run."""

    key: str | None = Field(default=None, pattern=f"^[0-9a-f]{{{2 * KEY_BYTES}}}$")
    """Secret key of samples and noise under the newest configuration, in hexadecimal digits. Absent once it is not
    needed any more: all steps are in a checkpoint, and none will be repeated."""
    charges: tuple[Charge, ...] = ()
    """What was charged, in the order of time. Steps that a later configuration has repeated are in it twice."""

    @property
    def last(self) -> int:
        """Number of the last step of the newest configuration that is charged."""
        return self.charges[-1].last if self.charges else 0

    def up_to(self, step: int) -> tuple[Charge, ...]:
        """Return the charges without those steps of the newest configuration that come after `step`."""
        if not self.charges:
            return ()
        *earlier, newest = self.charges
        made = max(0, min(newest.steps, step - newest.first + 1))
        return (*earlier, newest.replace(steps=made))


class Store(Protocol):
    """Small files beside the checkpoints of a run."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""

    def replace(self, name: str, content: bytes) -> None:
        """Write a file atomically; it is durable when this returns."""


def read_ledger(store: Store) -> Ledger:
    """Return the ledger of a run; an empty one if there is none.

    Raises:
        ConfigError: it is damaged, or a newer version has written it.
    """
    content = store.read(LEDGER_FILE)
    if content is None:
        return Ledger()
    try:
        fields = json.loads(content)
        version = fields.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(_damage(f"{type(error).__name__}: {error}")) from error
    if version != FORMAT:
        raise ConfigError(_damage(f"it has the format {version}, but this version reads format {FORMAT}"))
    try:
        return Ledger.model_validate(fields, extra="ignore")
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(_damage(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")) from error


def write_ledger(store: Store, ledger: Ledger) -> None:
    """Write the ledger of a run.

    Raises:
        OSError: the storage refuses.
    """
    store.replace(LEDGER_FILE, json.dumps({"format": FORMAT, **ledger.to_dict()}, indent=1).encode())


def _damage(problem: str) -> str:
    return (
        f"spec.trainer.privacy: {LEDGER_FILE} beside the checkpoints cannot be read ({problem}), so that the spent "
        "budget is not known; restore it, or start another run: another name, or another spec.checkpoint volume"
    )
