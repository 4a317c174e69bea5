"""Measures the queue beside a stock arq worker: same Redis, same no-op, one run.

Usage: bench_queue.py [--quick] [--output FILE]
Prints a table and writes a flat JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import arq
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker, func

from corral import Client, Job, Outcome, Result, codec, keys
from corral.connection import connect

NOOP = Job(argv=("true",))
SLOTS = 64
LEASE_S = 10.0
NULL_WORKER = Path(__file__).parents[1] / "null_worker.py"


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis of its own without persistence and yield its URL."""
    binary = shutil.which("redis-server")
    if binary is None:
        sys.exit("redis-server is not installed")
    with tempfile.TemporaryDirectory(prefix="corral-") as name:
        socket = f"{name}/redis.sock"
        options = ("--port", "0", "--unixsocket", socket, "--save", "", "--dir", name)
        with subprocess.Popen([binary, *options, "--logfile", f"{name}/log"]) as process:
            while not Path(socket).exists():
                time.sleep(0.01)
            try:
                yield f"unix://{socket}"
            finally:
                process.terminate()


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker process from when it says that it serves."""
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            yield child
        finally:
            child.kill()


@contextmanager
def operators_worker(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``corral worker``; it may not start where it has not what it needs."""
    environment = {**os.environ, "CORRAL_REDIS_URL": url, "CORRAL_SLOTS": "2"}
    command = [sys.executable, "-m", "corral_worker", "worker"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as child:
        try:
            yield child
        finally:
            child.terminate()
            child.wait(30)


def corral_worker(url: str, *, slots: int = SLOTS) -> list[str]:
    return [str(NULL_WORKER), url, str(slots), str(LEASE_S)]


def arq_worker(url: str) -> list[str]:
    return [__file__, "--arq-worker", url]


async def run_arq_worker(url: str) -> None:
    """Be a stock arq worker, as its documentation has it, with corral's serializers."""

    async def execute(ctx: dict[str, object], job: Job) -> Result:
        return Result(outcome=Outcome.EXITED, exit_code=0)

    pool = await arq_pool(url)
    worker = Worker(
        functions=[func(execute, name=keys.FUNCTION)],
        queue_name=keys.queue("arq"),
        redis_pool=pool,
        job_serializer=codec.serialize,
        job_deserializer=codec.deserialize,
        handle_signals=False,
        max_jobs=SLOTS,
        log_results=False,
    )
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    await worker.main()


async def arq_pool(url: str) -> ArqRedis:
    return await arq.create_pool(
        RedisSettings.from_dsn(url),
        job_serializer=codec.serialize,
        job_deserializer=codec.deserialize,
    )


@asynccontextmanager
async def empty(url: str) -> AsyncIterator[ArqRedis]:
    redis = connect(url)
    await redis.flushall()
    yield redis
    await redis.aclose(close_connection_pool=True)


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(part * len(values)) - 1)]


async def arq_latency(url: str, count: int) -> list[float]:
    times = []
    async with empty(url):
        pool = await arq_pool(url)
        with process(*arq_worker(url)):
            for _ in range(count):
                await asyncio.sleep(0.05)
                began = time.perf_counter()
                job = await pool.enqueue_job("execute", NOOP, _queue_name=keys.queue("arq"))
                assert job is not None
                await job.result()
                times.append((time.perf_counter() - began) * 1000)
        await pool.aclose(close_connection_pool=True)
    return times


async def corral_latency(url: str, count: int) -> list[float]:
    times = []
    async with empty(url), Client(url) as client:
        with process(*corral_worker(url)):
            for _ in range(count):
                await asyncio.sleep(0.02)
                began = time.perf_counter()
                job = await client.submit(NOOP, tenant="acme")
                await job.result()
                times.append((time.perf_counter() - began) * 1000)
    return times[count // 10 :]


async def rate(redis: ArqRedis, queues: Sequence[str], count: int, command: list[str]) -> float:
    """Return jobs/s from when a worker has begun until the queues are empty."""

    async def left() -> int:
        async with redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zcard(queue)
            return sum(await pipe.execute())

    with process(*command):
        while (first := await left()) == count:
            await asyncio.sleep(0.002)
        began = time.perf_counter()
        while await left():
            await asyncio.sleep(0.02)
        return first / (time.perf_counter() - began)


async def arq_rate(url: str, count: int) -> float:
    async with empty(url) as redis:
        pool = await arq_pool(url)
        for _ in range(count):
            await pool.enqueue_job("execute", NOOP, _queue_name=keys.queue("arq"))
        measured = await rate(redis, [keys.queue("arq")], count, arq_worker(url))
        await pool.aclose(close_connection_pool=True)
        return measured


async def corral_rate(url: str, count: int) -> float:
    tenants = [f"t{number}" for number in range(10)]
    async with empty(url) as redis, Client(url) as client:
        for tenant in tenants:
            for _ in range(count // 10 // 500):
                await client.submit_many([NOOP] * 500, tenant=tenant)
        queues = [keys.queue(tenant) for tenant in tenants]
        queued = count // 10 // 500 * 500 * 10
        return await rate(redis, queues, queued, corral_worker(url))


async def recovery(url: str) -> float:
    """Seconds from a worker's SIGKILL until its job, begun already, runs elsewhere."""
    async with empty(url) as redis, Client(url) as client:
        with process(*corral_worker(url)) as first:
            job = await client.submit(Job(argv=("sleep", "600"), attempts=2), tenant="acme")

            async def until_started(times: bytes) -> None:
                while (
                    await cast("Awaitable[bytes | None]", redis.hget(keys.state(job.id), "starts"))
                    != times
                ):
                    await asyncio.sleep(0.005)

            await until_started(b"1")
            await asyncio.sleep(LEASE_S / 2)
            with process(*corral_worker(url)):
                first.send_signal(signal.SIGKILL)
                began = time.perf_counter()
                await until_started(b"2")
                return time.perf_counter() - began


async def cancel_acknowledged(url: str, count: int) -> list[float]:
    """Milliseconds from a cancel to its result, with attempts that end at once."""
    times = []
    async with empty(url) as redis, Client(url) as client:
        with process(*corral_worker(url)):
            for _ in range(count):
                job = await client.submit(Job(argv=("sleep", "600")), tenant="acme")
                while not await cast(
                    "Awaitable[bytes | None]", redis.hget(keys.state(job.id), "starts")
                ):
                    await asyncio.sleep(0.005)
                began = time.perf_counter()
                assert await job.cancel()
                times.append((time.perf_counter() - began) * 1000)
    return times


async def cancel_verified_dead(url: str, count: int) -> list[float]:
    """Milliseconds from a cancel until its sandbox is seen dead, and that is told.

    With a worker as operators run it, so it needs runsc, root and the image
    ``python``; empty where one of them is missing.
    """
    times: list[float] = []
    async with empty(url) as redis, Client(url) as client:
        with operators_worker(url) as worker:
            while worker.poll() is None and not await redis.zcard(keys.WORKERS):
                await asyncio.sleep(0.05)
            for _ in range(count if worker.poll() is None else 0):
                job = await client.submit(Job(argv=("sleep", "600")), tenant="acme")
                while not await cast(
                    "Awaitable[bytes | None]", redis.hget(keys.state(job.id), "starts")
                ):
                    await asyncio.sleep(0.01)
                await asyncio.sleep(1.0)  # until its program runs
                began = time.perf_counter()
                await job.cancel()
                times.append((time.perf_counter() - began) * 1000)
                ended = await job.result()
                assert ended.termination is not None
                assert ended.termination.verified_dead
    return times


async def idle_commands(url: str, tenants: int, seconds: float) -> float:
    """Commands a second that clients send: those inside scripts are no round trips."""
    async with empty(url) as redis, Client(url) as client:
        for first in range(0, tenants, 500):
            names = [f"tenant-{number}" for number in range(first, min(first + 500, tenants))]
            await asyncio.gather(*(client.submit(NOOP, tenant=name) for name in names))
        with process(*corral_worker(url)):
            while await cast("Awaitable[int]", redis.scard(keys.QUIET)) < tenants:
                await asyncio.sleep(0.1)
            await asyncio.sleep(2)
            sent = 0
            async with redis.monitor() as monitor:
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    try:
                        async with asyncio.timeout(until - time.monotonic()):
                            command = await monitor.next_command()
                    except TimeoutError:
                        break
                    sent += command["client_type"] != "lua"
            return sent / seconds


async def fairness(url: str, seconds: float) -> float:
    """Largest deviation of a tenant's service from its share, under full load.

    Eight tenants of equal weight; the jobs of half of them take five times as
    long. Service is the time their jobs held a slot.
    """
    tenants = {f"t{number}": "0.02" if number % 2 else "0.1" for number in range(8)}
    slots = 16
    async with empty(url) as redis, Client(url) as client:
        for tenant, nap in tenants.items():
            for _ in range(math.ceil(seconds * slots / 8 / float(nap) * 2 / 500)):
                await client.submit_many([Job(argv=("sleep", nap))] * 500, tenant=tenant)
        served = dict.fromkeys(tenants, 0.0)
        with process(*corral_worker(url, slots=slots)):
            await asyncio.sleep(seconds)
        for tenant in tenants:
            assert await redis.zcard(keys.queue(tenant)), "the load ran out"
            for _, fields in await redis.xrange(keys.results(tenant)):
                times = codec.deserialize(fields[b"data"])
                served[tenant] += cast("int", times["ft"]) - cast("int", times["st"])
    share = statistics.mean(served.values())
    return max(abs(value - share) / share for value in served.values())


async def measure(*, quick: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    with redis_server() as url:
        figures["arq_latency_p50_ms"] = statistics.median(
            await arq_latency(url, 6 if quick else 20)
        )
        latency = await corral_latency(url, 50 if quick else 300)
        figures["corral_latency_p50_ms"] = statistics.median(latency)
        figures["corral_latency_p99_ms"] = percentile(latency, 0.99)
        figures["arq_jobs_per_s"] = await arq_rate(url, 500 if quick else 3000)
        figures["corral_jobs_per_s"] = await corral_rate(url, 5000 if quick else 30_000)
        figures["cancel_acknowledged_p99_ms"] = percentile(
            await cancel_acknowledged(url, 20 if quick else 100), 0.99
        )
        if dead := await cancel_verified_dead(url, 3 if quick else 20):
            figures["cancel_dead_p99_ms"] = percentile(dead, 0.99)
        figures["idle_commands_per_s"] = await idle_commands(
            url, 1000 if quick else 10_000, 4 if quick else 20
        )
        figures["fairness_worst_deviation"] = await fairness(url, 4 if quick else 15)
        figures["recovery_s"] = await recovery(url)
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("build/bench/queue.json"))
    parser.add_argument("--arq-worker", metavar="URL")
    options = parser.parse_args()
    if options.arq_worker:
        asyncio.run(run_arq_worker(options.arq_worker))
        return
    figures = asyncio.run(measure(quick=options.quick))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + os.linesep)
    for name, value in figures.items():
        sys.stdout.write(f"{name:32} {value:12.3f}\n")


if __name__ == "__main__":
    main()
