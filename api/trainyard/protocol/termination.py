"""The last word of a worker: a short JSON object that it leaves as the container's termination message."""

import json
from typing import Annotated

from pydantic import Field, ValidationError

from trainyard.base import ApiModel, Count
from trainyard.protocol.progress import Progress

MAX_BYTES = 4096
"""The kubelet keeps no more of a termination message."""

_MAX_EXCEPTION = 200
_GAP = " ... "


class Hang(ApiModel):
    """Where a rank stood that gave no sign of life any more."""

    no_stack_trace: bool = False
    """It did not even say where it is: it is stopped, or stuck in the kernel."""
    phase: Count
    """What it was doing: the place of that in the order of a step (trainyard_trainer.runtime.heartbeat.Phase)."""
    last_heartbeat: Annotated[float, Field(allow_inf_nan=False)]
    """When it gave its last sign of life, in seconds since 1970."""


class TerminationMessage(ApiModel):
    """Why a worker ended, in words that the operator can act upon."""

    rank: Count | None = None
    """Global rank of the process."""
    exception: str | None = None
    """Class of the exception, or the name of the signal; absent after success."""
    message: str = ""
    """Text of the exception: one line."""
    step: Count | None = None
    """Optimizer steps done by then."""
    peer_lost: bool = False
    """True if this process only noticed that another one had gone, or computes what is no number: an effect, not the
    cause."""
    hang: Hang | None = None
    """Set if nothing happened but that a rank gave no sign of life any more."""
    progress: Progress | None = None
    """Final figures, from rank 0 after success."""

    @property
    def culprit_key(self) -> tuple[bool, int, int, float, int]:
        """Sort key for ranks that hang together, since all wait for one: that one comes first.

        One that does not answer, then the one that is the furthest behind, then the longest without a sign of life.
        """
        hang = self.hang or Hang(phase=0, last_heartbeat=0.0)
        return not hang.no_stack_trace, self.step or 0, hang.phase, hang.last_heartbeat, self.rank or 0

    def encode(self) -> str:
        """The message as JSON of at most `MAX_BYTES` bytes; a longer text loses its middle."""
        text = self._text(self.message)
        if len(text) <= MAX_BYTES:
            return text
        low, high = 0, len(self.message) // 2  # characters that are kept at either end: as many as fit
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._text(self._shortened(middle))) <= MAX_BYTES:
                low = middle
            else:
                high = middle - 1
        return self._text(self._shortened(low))

    def _shortened(self, keep: int) -> str:
        return self.message[:keep] + _GAP + self.message[len(self.message) - keep :]

    def _text(self, message: str) -> str:
        """JSON in ASCII, so that its length is its size in bytes."""
        exception = self.exception and self.exception[:_MAX_EXCEPTION]
        return json.dumps(self.replace(message=message, exception=exception).to_dict())

    @classmethod
    def decode(cls, text: str) -> "TerminationMessage | None":
        """Parse a termination message; None if it is not one of ours (a user's own program, or a log tail)."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None
