"""A limit for requests in flight that serves many jobs fairly."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSlots:
    """A number of slots, each of which one request holds while it is in flight.

    Each request belongs to a flow, for example to a job. A free slot goes to the waiting flow that holds the fewest;
    among equals they take turns. So a job with 10,000 requests delays another one by a single request at a time, and a
    job whose requests hang leaves slots for all others.

    Args:
        slots: number of slots of all flows.
        per_flow: most slots that one flow holds.
    """

    def __init__(self, slots: int, per_flow: int) -> None:
        self._free = slots
        self._per_flow = per_flow
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, flow: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it while the context lasts."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(flow, deque()).append(turn)
        self._assign()
        try:
            await turn
        except asyncio.CancelledError:
            # The slot may have been assigned at the moment of the cancellation.
            if not turn.cancelled():
                self._release(flow)
            raise
        try:
            yield
        finally:
            self._release(flow)

    def _assign(self) -> None:
        """Give free slots to waiting requests."""
        while self._free:
            eligible = [flow for flow in self._waiting if self._held[flow] < self._per_flow]
            if not eligible:
                return
            flow = min(eligible, key=self._held.__getitem__)
            turn = self._waiting[flow].popleft()
            if self._waiting[flow]:
                self._waiting.move_to_end(flow)
            else:
                del self._waiting[flow]
            if not turn.cancelled():
                self._free -= 1
                self._held[flow] += 1
                turn.set_result(None)

    def _release(self, flow: str) -> None:
        self._free += 1
        self._held[flow] -= 1
        if not self._held[flow]:
            del self._held[flow]
        self._assign()
