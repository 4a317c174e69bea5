"""A stock arq worker whose jobs call ``runsc run``: what one would build without corral.

Run as a program it is that worker: ``python -m bench.stock URL SLOTS COMMANDS``, where
COMMANDS is a JSON file with the commands of each program's lanes.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import arq
import msgspec
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker, func
from bench.bare import LANES, PROGRAMS, Bare
from bench.ground import Ground
from bench.served import Spent

_READY_WITHIN_S = 60.0
_ENDED_WITHIN_S = 120.0
_HEALTH = "arq:queue:health-check"
_OFTEN_S = 0.1


class Stock:
    """A running worker, and its callers' side. All that can be set is as arq has it."""

    def __init__(self, pool: ArqRedis, worker: int, redis: int) -> None:
        self._pool = pool
        self._worker = worker
        self._redis = redis

    async def run(self, program: str) -> float:
        """Enqueue a job, and return the seconds until its result was seen."""
        began = time.monotonic()
        job = await self._pool.enqueue_job("run", program)
        assert job is not None
        await job.result(timeout=_ENDED_WITHIN_S)
        return time.monotonic() - began

    async def run_watched(self, program: str) -> None:
        """Do the same, but look for the result more often than arq does."""
        job = await self._pool.enqueue_job("run", program)
        assert job is not None
        await job.result(timeout=_ENDED_WITHIN_S, poll_delay=_OFTEN_S)

    def spent(self) -> Spent:
        """Return the processor time spent until now."""
        return Spent.by(self._worker, self._redis)


@asynccontextmanager
async def stock_worker(ground: Ground, bare: Bare, slots: int, name: str) -> AsyncIterator[Stock]:
    """Run a worker for the block, with a Redis of its own."""
    directory = ground.directory / name
    directory.mkdir()
    redis, url = ground.start_redis(directory)
    commands = directory / "commands.json"
    commands.write_bytes(
        msgspec.json.encode(
            {name: [bare.command(name, lane) for lane in range(LANES)] for name in PROGRAMS}
        )
    )
    command = [sys.executable, "-m", "bench.stock", url, str(slots), str(commands)]
    worker = ground.start(command, directory / "worker.log")
    try:
        pool = await arq.create_pool(RedisSettings.from_dsn(url))
        with anyio.fail_after(_READY_WITHIN_S):
            while not await pool.exists(_HEALTH):
                assert worker.poll() is None, (directory / "worker.log").read_text()
                await anyio.sleep(0.02)
        yield Stock(pool, worker.pid, redis.pid)
        await pool.aclose(close_connection_pool=True)
    finally:
        await ground.stop([worker])
        await ground.stop([redis])


async def work(url: str, slots: int, commands: dict[str, list[list[str]]]) -> None:
    """Be the worker."""
    numbers = itertools.count()
    free: asyncio.Queue[int] = asyncio.Queue()
    for lane in range(LANES):
        free.put_nowait(lane)

    async def run(ctx: dict[object, object], program: str) -> bytes:
        lane = await free.get()
        process = await asyncio.create_subprocess_exec(
            *commands[program][lane],
            f"a{slots}-{next(numbers)}",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await process.communicate()
        free.put_nowait(lane)
        assert process.returncode == 0, errors
        return output

    await Worker(
        functions=[func(run, name="run")],
        redis_pool=await arq.create_pool(RedisSettings.from_dsn(url)),
        max_jobs=slots,
    ).async_run()


if __name__ == "__main__":
    _, url, slots, file = sys.argv
    found = msgspec.json.decode(Path(file).read_bytes(), type=dict[str, list[list[str]]])
    asyncio.run(work(url, int(slots), found))
