"""Responses of pods, which run users' containers: their content and size are not trusted."""

import aiohttp


async def read_text(response: aiohttp.ClientResponse, max_bytes: int) -> str:
    """Return the body of a response.

    Raises:
        ValueError: the body has more than `max_bytes` bytes, or is not UTF-8.
    """
    body = b""
    async for chunk in response.content.iter_chunked(65_536):
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(f"the response has more than {max_bytes} bytes")
    return body.decode()
