"""What all ranks agree on in each step: whether the gradient is bad, and whether to save or to stop.

Both travel in one all-reduce of two numbers, on the device that trains. No rank waits for the result on the host: the
optimizer uses it on the device, and the host looks at it one step later.
"""

from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from trainyard_trainer.runtime.world import World


class Request(IntEnum):
    """What a rank may request. Of several requests the largest wins: a stop includes a save."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class StepAgreement:
    """Exchanges a flag and a request between all ranks that train, once per step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._save = self._stop = False
        self.requested = torch.zeros((), device=world.device)
        """Largest request of any rank in the newest exchange, a scalar on the device."""

    def request(self, request: Request) -> None:
        """Request something of all ranks in the next exchange; a stop may be requested by a signal handler.

        A signal may arrive between any two operations, so each kind of request has a flag of its own: the one for a
        stop is never reset, since no step follows it.
        """
        if request is Request.STOP:
            self._stop = True
        elif request is Request.SAVE:
            self._save = True

    def any_bad(self, bad: Tensor) -> Tensor:
        """Return whether a flag, a scalar on the device, is true on any rank. Every rank calls it once per step."""
        own = self._take()
        numbers = torch.stack([bad.float(), torch.full((), float(own), device=self._world.device)])
        if self._world.size > 1:
            dist.all_reduce(numbers, dist.ReduceOp.MAX, self._world.group)
        self.requested = numbers[1]
        return numbers[0] > 0

    def _take(self) -> Request:
        """Return the request of this rank; a save counts for one exchange."""
        save, self._save = self._save, False
        if self._stop:
            return Request.STOP
        return Request.SAVE if save else Request.NOTHING
