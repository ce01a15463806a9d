"""Work beside a test, whose failure is the failure of the test at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager


async def _without_end(part: Awaitable[None]) -> None:
    await part
    raise AssertionError(f"{part} has ended before the test")


@asynccontextmanager
async def background(*parts: Awaitable[None]) -> AsyncIterator[None]:
    """Run parts that have no end of their own, until the context ends.

    The first failure is raised, of the context or of a part. A part that ends is one too: the test would wait in vain
    for its effects.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_without_end(part)) for part in parts]
            yield
            for task in tasks:
                task.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
