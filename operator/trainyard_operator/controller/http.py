"""Responses of pods, which run users' containers: their content and size are not trusted."""

from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp
from yarl import URL

_PIECE_BYTES = 65_536

REQUEST_HEADERS: Final[Mapping[str, str]] = {"Accept-Encoding": "identity"}
"""Headers of requests to pods: a compressed response could be larger than any limit on what is read."""


def pod_session(timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """Return a session for requests to pods: no compression, no cookies, no redirects to elsewhere by default."""
    return aiohttp.ClientSession(
        timeout=timeout,
        headers=REQUEST_HEADERS,
        auto_decompress=False,
        # Callers limit the requests in flight. A limit here would make those that answer wait for those that do not.
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def pod_url(address: str | None, port: int, path: str) -> URL | None:
    """Return the URL of a page of a pod, built from its parts; None while the pod has no address."""
    return URL.build(scheme="http", host=address, port=port, path=path) if address else None


def pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Return an iterator over the body of a response.

    Raises:
        ValueError: the response is compressed.
    """
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ValueError("the response is compressed, although it must not be")
    return response.content.iter_chunked(_PIECE_BYTES)


async def read_text(response: aiohttp.ClientResponse, max_bytes: int) -> str:
    """Return the body of a response.

    Raises:
        ValueError: the body has more than `max_bytes` bytes, is compressed, or is not UTF-8.
    """
    body = bytearray()
    async for piece in pieces(response):
        body += piece
        if len(body) > max_bytes:
            raise ValueError(f"the response has more than {max_bytes} bytes")
    return body.decode()
