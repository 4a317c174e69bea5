"""A real server that says that it is an older one."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_AT_ONCE = 65536


@asynccontextmanager
async def older(url: str) -> AsyncIterator[str]:
    """Yield the URL of a way to the server behind a Unix socket's URL, on which it is Redis 6."""
    path = urlsplit(url).path

    async def serve(asked: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        told, questions = await asyncio.open_unix_connection(path)
        forward = asyncio.create_task(_pass_on(asked, questions))
        try:
            await _pass_on(told, answers)
        finally:
            forward.cancel()
            answers.close()
            questions.close()

    with tempfile.TemporaryDirectory(prefix="corral-") as directory:
        own = f"{directory}/older.sock"
        async with await asyncio.start_unix_server(serve, own):
            yield f"unix://{own}"


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    # What INFO says of the version comes in the first bytes of its answer.
    while data := await source.read(_AT_ONCE):
        sink.write(data.replace(b"redis_version:7.", b"redis_version:6."))
        await sink.drain()
    sink.close()
