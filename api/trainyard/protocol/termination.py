"""The termination message of a worker of the built-in trainer: a short JSON object that explains why it ended."""

import json
from typing import Annotated

from pydantic import Field, ValidationError

from trainyard.base import ApiModel, Count
from trainyard.protocol.progress import Progress

MAX_BYTES = 4096
"""Largest termination message that the kubelet keeps."""

_MAX_EXCEPTION = 200
"""Longest name of an exception, in characters."""
_GAP = " ... "
"""Replacement of the middle of a message that is too long."""


class Hang(ApiModel):
    """Position of a rank that missed its heartbeats."""

    no_stack_trace: bool = False
    """Whether the process wrote no stack trace when it was asked to: it is stopped, or stuck in the kernel."""
    phase: Count
    """Phase of the step that the rank was in, as its index in the order of phases
    (trainyard_trainer.runtime.heartbeat.Phase)."""
    last_heartbeat: Annotated[float, Field(allow_inf_nan=False)]
    """Time of the last heartbeat, in seconds since 1970."""


class TerminationMessage(ApiModel):
    """Why a worker ended, in a form that the operator can act on."""

    rank: Count | None = None
    """Global rank of the process."""
    exception: str | None = None
    """Name of the exception's class, or of the signal; absent after success."""
    message: str = ""
    """Text of the exception, in one line."""
    step: Count | None = None
    """Optimizer steps that were complete."""
    peer_lost: bool = False
    """Whether the failure is an effect and not the cause: this process lost the connection to another one, or received
    NaN or Inf from it."""
    hang: Hang | None = None
    """Position of the rank; set only if it was ended because it missed its heartbeats."""
    progress: Progress | None = None
    """Final progress, from rank 0 after success."""

    @property
    def culprit_key(self) -> tuple[bool, int, int, float, int]:
        """Return a sort key for ranks that hang together because all wait for one of them: the likely culprit first.

        First ranks without a stack trace, then those that are the furthest behind in step and phase, then those with
        the oldest heartbeat, then the lowest rank.
        """
        hang = self.hang or Hang(phase=0, last_heartbeat=0.0)
        return not hang.no_stack_trace, self.step or 0, hang.phase, hang.last_heartbeat, self.rank or 0

    def encode(self) -> str:
        """Return the message as JSON of at most `MAX_BYTES` bytes. A text that is too long loses its middle."""
        text = self._text(self.message)
        if len(text) <= MAX_BYTES:
            return text
        # Binary search for the largest number of characters that can be kept at either end.
        low, high = 0, len(self.message) // 2
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._text(self._shortened(middle))) <= MAX_BYTES:
                low = middle
            else:
                high = middle - 1
        return self._text(self._shortened(low))

    def _shortened(self, keep: int) -> str:
        """Return the text with `keep` characters at either end."""
        return self.message[:keep] + _GAP + self.message[len(self.message) - keep :]

    def _text(self, message: str) -> str:
        """Return the JSON with another text, in ASCII, so that its length is its size in bytes."""
        exception = self.exception and self.exception[:_MAX_EXCEPTION]
        return json.dumps(self.replace(message=message, exception=exception).to_dict())

    @classmethod
    def decode(cls, text: str) -> "TerminationMessage | None":
        """Parse a termination message. Return None for any other text, for example a user's own or the end of a log."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None
