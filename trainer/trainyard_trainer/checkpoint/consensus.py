"""What one rank wants, done by all after the same step."""

from enum import IntEnum

import torch
import torch.distributed as dist


class Wish(IntEnum):
    """What a rank may want. Of several wishes the largest counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class Agreement:
    """Ranks tell each other their wishes once a step, and learn the outcome a step later, so that none has to wait."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """`group`: all ranks, over gloo, for this alone; None if there is only one."""
        self._group = group
        self._wish = Wish.NOTHING
        self._largest = torch.zeros(1, dtype=torch.int32)
        self._under_way: dist.Work | None = None

    def want(self, wish: Wish) -> None:
        """From any thread, at any time."""
        self._wish = max(self._wish, wish)

    def settle(self) -> Wish:
        """What all do now: the same on every rank. All ranks must call it after each step."""
        if self._group is None:
            return self._take(self._wish)
        agreed = Wish.NOTHING
        if self._under_way is not None:
            self._under_way.wait()
            agreed = self._take(Wish(int(self._largest.item())))
        self._largest.fill_(self._wish)
        self._under_way = dist.all_reduce(self._largest, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def _take(self, agreed: Wish) -> Wish:
        if agreed >= self._wish:
            self._wish = Wish.NOTHING
        return agreed
