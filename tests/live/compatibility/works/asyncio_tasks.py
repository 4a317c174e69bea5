"""Streams over TCP and a Unix socket, child processes, timers and threads in one event loop."""

from __future__ import annotations

import asyncio


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.readline()).upper())
    await writer.drain()
    writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"hello\n")
    answer = await reader.read()
    writer.close()
    return answer


async def child() -> bytes:
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    return (await process.communicate(b"piped"))[0]


async def main() -> None:
    async with asyncio.timeout(60):
        tcp = await asyncio.start_server(echo, "127.0.0.1", 0)
        host, port = tcp.sockets[0].getsockname()
        unix = await asyncio.start_unix_server(echo, "socket")
        async with tcp, unix:
            asked = [await asyncio.open_connection(host, port) for _ in range(50)]
            asked += [await asyncio.open_unix_connection("socket") for _ in range(50)]
            answers = await asyncio.gather(*(ask(*connection) for connection in asked))
        assert answers == [b"HELLO\n"] * 100
        assert await asyncio.gather(*(child() for _ in range(5))) == [b"piped"] * 5
        assert await asyncio.to_thread(sum, [1, 2]) == 3
        await asyncio.sleep(0.001)


asyncio.run(main())
