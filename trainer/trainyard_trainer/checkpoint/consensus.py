"""Requests of single ranks (save, stop) that all ranks carry out after the same step."""

from enum import IntEnum

import torch
import torch.distributed as dist


class Request(IntEnum):
    """What a rank may request. Of several requests the largest wins: a stop includes a save."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class StepConsensus:
    """Lets all ranks act on a request after the same step.

    Each step starts one asynchronous all-reduce of the ranks' requests, and its result is read a step later, so that
    no rank waits for it.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """`group`: all ranks, over gloo, used for nothing else at the same time; None if there is only one rank."""
        self._group = group
        self._request = Request.NOTHING
        self._largest = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def request(self, request: Request) -> None:
        """Add a request of this rank; may be called from any thread at any time."""
        self._request = max(self._request, request)

    def poll(self) -> Request:
        """Return what all ranks do now, the same on each of them. Every rank must call it after each step."""
        if self._group is None:
            return self._accept(self._request)
        agreed = Request.NOTHING
        if self._pending is not None:
            self._pending.wait()
            agreed = self._accept(Request(int(self._largest.item())))
        self._largest.fill_(self._request)
        self._pending = dist.all_reduce(self._largest, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def _accept(self, agreed: Request) -> Request:
        """Forget the request of this rank if what was agreed on includes it."""
        if agreed >= self._request:
            self._request = Request.NOTHING
        return agreed
