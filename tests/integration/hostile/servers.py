"""Servers as a hostile container may run them, at addresses of 127.0.0.0/8, which Linux has without configuration."""

import asyncio
import gzip
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"


class Calls:
    """How often a server was called."""

    def __init__(self) -> None:
        self.count = 0


@asynccontextmanager
async def serving(address: str, port: int, handler: Handler) -> AsyncIterator[Calls]:
    """Serve until the context ends; each connection is one call of the handler."""
    calls, tasks = Calls(), set[asyncio.Task[None]]()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.count += 1
        task = asyncio.create_task(_handle(handler, reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, address, port)
    try:
        yield calls
    finally:
        server.close()
        ending = list(tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


async def _handle(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
            await writer.drain()
    finally:
        # What was written is sent before the connection is closed.
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _request(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\n")


def page(*bodies: str | bytes, status: str = "200 OK", headers: tuple[str, ...] = ()) -> Handler:
    """Answer with these bodies in turn."""
    turns = itertools.cycle(body.encode() if isinstance(body, str) else body for body in bodies)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _request(reader)
        body = next(turns)
        lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers)
        writer.write("\r\n".join((*lines, "", "")).encode() + body)

    return handler


def gzip_bomb(size: int) -> Handler:
    """Answer with zeros that are compressed about a thousandfold."""
    return page(gzip.compress(b"0" * size), headers=("Content-Encoding: gzip",))


def redirect(target: str) -> Handler:
    """Send the caller elsewhere."""
    return page("", status="302 Found", headers=(f"Location: {target}",))


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept the connection, and say nothing until the caller gives up."""
    await reader.read()


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection without an answer."""
    await _request(reader)


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a byte now and then, for ever."""
    await _request(reader)
    writer.write(_HEAD)
    while True:
        writer.write(b"#")
        await writer.drain()
        await asyncio.sleep(0.5)


async def speaks_ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak another protocol."""
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    await reader.read()


def endless(chunk: bytes, head: bytes = _HEAD) -> Handler:
    """Send as much as the caller will read."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _request(reader)
        writer.write(head)
        while True:
            writer.write(chunk)
            await writer.drain()

    return handler


endless_header = endless(b"X-Filler: " + b"a" * 1000 + b"\r\n", head=b"HTTP/1.1 200 OK\r\n")
"""A header that does not end."""
