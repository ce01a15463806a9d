"""Many requests of one kind, with slow start: the Job controller of Kubernetes creates pods by the same rule."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from trainyard_operator.controller.backend import BackendError

T = TypeVar("T")
R = TypeVar("R")


async def send_all(send: Callable[[T], Awaitable[R]], items: Sequence[T], *, first: int, most: int) -> list[R]:
    """Call `send` for each item, and return the results in the order of the items.

    At first `first` calls run at a time, and each success allows one more, up to `most`: their number doubles with
    each round trip. After a failure no further call is made, so what a quota or a webhook refuses costs few requests.

    Raises:
        BackendError: the first failure, once all calls that were in flight have ended.
    """
    results: dict[int, R] = {}
    failures: list[BackendError] = []
    remaining = iter(enumerate(items))
    running = 0

    async def work() -> None:
        nonlocal running
        for index, item in remaining:
            try:
                results[index] = await send(item)
            except BackendError as failure:
                failures.append(failure)
            if failures:
                return
            if running < most:
                running += 1
                group.create_task(work())

    async with asyncio.TaskGroup() as group:
        for _ in range(min(first, most, len(items))):
            running += 1
            group.create_task(work())
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(items))]
