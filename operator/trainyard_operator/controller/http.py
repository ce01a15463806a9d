"""Answers of pods: their containers are the users', so an answer may be anything, and of any length."""

import aiohttp


async def read_text(response: aiohttp.ClientResponse, longest: int) -> str:
    """The body of an answer.

    Raises:
        ValueError: it has more than `longest` bytes, or is not UTF-8.
    """
    body = b""
    async for chunk in response.content.iter_chunked(65_536):
        body += chunk
        if len(body) > longest:
            raise ValueError(f"the answer has more than {longest} bytes")
    return body.decode()
