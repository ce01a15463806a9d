"""The outcome of a step, which the host reads one step later, so that it need not wait for the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from trainyard_trainer.runtime.step_agreement import Request


class HostValues(NamedTuple):
    """What the host needs to know about a step."""

    norm: float
    """Global norm of the gradient before clipping."""
    applied: bool
    """Whether the gradient was applied, on all ranks."""
    requested: Request
    """Largest request of any rank in this step."""


class StepOutcome:
    """Tensors of a step that the device may still be computing, and a copy of them that is on its way to the host."""

    def __init__(
        self, step: int, loss: Tensor, norm: Tensor, applied: Tensor, requested: Tensor, learning_rate: float
    ) -> None:
        """Start the copy. All tensors are scalars on the device; `step`: its number, from 1."""
        self.step, self.loss, self.norm, self.learning_rate = step, loss, norm, learning_rate
        numbers = torch.stack([norm.float(), applied.float(), requested.float()])
        self._ready: torch.cuda.Event | None = None
        if numbers.is_cuda:
            # Memory that the device can write to without the host; it must be complete before the host reads it.
            copy = torch.empty(numbers.shape, pin_memory=True)
            copy.copy_(numbers, non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()
            numbers = copy
        self._numbers = numbers
        self._values: HostValues | None = None

    def values(self) -> HostValues:
        """Return the values on the host; waits until the device has finished the step."""
        if self._values is None:
            if self._ready is not None:
                self._ready.synchronize()
            # A view: unlike item() it does not ask the device for anything.
            norm, applied, requested = map(float, self._numbers.numpy())
            self._values = HostValues(norm, bool(applied), Request(int(requested)))
        return self._values
