"""Workers that die, freeze or lose Redis; Redis that stalls or restarts; crowds."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import anyio
import pytest
from arq.connections import ArqRedis
from msgspec import structs
from support.null_executor import NullExecutor
from support.serving import SOON_S

from corral import Client, ErrWorkerLost, Job, Outcome, Result, codec, keys
from corral.connection import connect
from corral.scripts import Script
from corral_worker.executor.executor import Attempt
from corral_worker.queue.claims import Claims
from corral_worker.queue.consumer import Consumer
from corral_worker.sandbox.stop import Stop

ECHO = Job(argv=("echo", "hello"))
NULL_WORKER = Path(__file__).parents[1] / "null_worker.py"
LEASE_S = 1.0


class Noting(NullExecutor):
    def __init__(self) -> None:
        self.started: list[str] = []
        """Attempts that were given to it."""
        self.began: list[str] = []
        """Those whose programs began."""
        self.stopped_at: list[float] = []

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        self.started.append(attempt.job_id)

        async def begin() -> None:
            assert attempt.begin is not None
            await attempt.begin()
            self.began.append(attempt.job_id)

        try:
            return await super().execute(structs.replace(attempt, begin=begin), stop)
        finally:
            if stop.cause is not None:
                self.stopped_at.append(time.monotonic())


@asynccontextmanager
async def serving(
    redis: ArqRedis, *, slots: int = 4, lease_s: float = LEASE_S
) -> AsyncIterator[Noting]:
    executor = Noting()
    async with anyio.create_task_group() as tasks:
        consumer = Consumer(
            redis=redis, executor=executor, tenants=(), slots=slots, lease_s=lease_s
        )
        tasks.start_soon(consumer.run)
        try:
            yield executor
        finally:
            tasks.cancel_scope.cancel()


@contextmanager
def worker_process(url: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(NULL_WORKER), url, "4", str(LEASE_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


async def _starts(redis: ArqRedis, job_id: str, count: int) -> None:
    with anyio.fail_after(SOON_S):
        while True:
            value = await cast("Awaitable[bytes | None]", redis.hget(keys.state(job_id), "starts"))
            if int(value or 0) >= count:
                return
            await anyio.sleep(0.01)


# Workers.


async def test_a_job_that_a_dead_worker_had_not_started_runs_elsewhere_within_a_lease(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    dead = Claims(redis_client, worker="dead", lease_s=0.5, most_lost=3)
    assert [claim.job_id for claim in (await dead.take(4)).claims] == [job.id]

    async with serving(redis_client):
        assert (await job.result(timeout=SOON_S)).ok


async def test_a_started_job_of_a_killed_worker_is_worker_lost_unless_it_allows_more(
    client: Client, redis_client: ArqRedis, redis_url: str
) -> None:
    with worker_process(redis_url) as process:
        once = await client.submit(Job(argv=("sleep", "0.5")), tenant="acme")
        twice = await client.submit(Job(argv=("sleep", "0.5"), attempts=2), tenant="acme")
        await _starts(redis_client, once.id, 1)
        await _starts(redis_client, twice.id, 1)
        process.send_signal(signal.SIGKILL)

    async with serving(redis_client) as executor:
        assert (await twice.result(timeout=SOON_S)).ok
        with pytest.raises(ErrWorkerLost) as caught:
            await once.result(timeout=SOON_S)

    assert caught.value.retry_safety == "unknown"
    assert executor.started == [twice.id]


async def test_a_frozen_worker_cannot_commit_when_it_wakes(
    client: Client, redis_client: ArqRedis, redis_url: str
) -> None:
    with worker_process(redis_url) as process:
        job = await client.submit(Job(argv=("sleep", "0.4"), attempts=2), tenant="acme")
        await _starts(redis_client, job.id, 1)
        process.send_signal(signal.SIGSTOP)
        async with serving(redis_client):
            await job.result(timeout=SOON_S)
        data = await redis_client.get(keys.result(job.id))
        process.send_signal(signal.SIGCONT)
        other = await client.submit(ECHO, tenant="acme")
        await other.result(timeout=SOON_S)

    assert data == await redis_client.get(keys.result(job.id))
    stream = await redis_client.xrange(keys.results("acme"))
    assert [fields[b"id"].decode() for _, fields in stream] == [job.id, other.id]


async def test_a_job_that_kills_its_workers_ends_among_the_dead_letters(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    for number in range(3):
        dead = Claims(redis_client, worker=f"dead-{number}", lease_s=0.02, most_lost=3)
        with anyio.fail_after(SOON_S):
            while not (await dead.take(1)).claims:
                await anyio.sleep(0.01)

    async with serving(redis_client) as executor:
        with pytest.raises(ErrWorkerLost, match="3 workers") as caught:
            await job.result(timeout=SOON_S)

    assert caught.value.retry_safety == "not_started"
    assert executor.started == []
    assert await redis_client.zrange(keys.DEAD, 0, -1) == [job.id.encode()]
    payload = await redis_client.get(keys.dead(job.id))
    assert codec.deserialize(bytes(payload))["a"] == (ECHO,)


# Redis.


async def test_a_server_that_took_over_and_forgot_a_claim_gives_no_token_again(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    known = {key: await redis_client.dump(key) for key in await redis_client.keys()}
    claims = Claims(redis_client, worker="one", lease_s=10, most_lost=3)
    (first,) = (await claims.take(1)).claims
    await redis_client.flushdb()
    for key, value in known.items():
        await redis_client.restore(key, 0, value)

    (second,) = (await claims.take(1)).claims

    assert (first.job_id, second.job_id) == (job.id, job.id)
    assert first.token != second.token


async def test_a_worker_cut_off_from_redis_kills_what_runs_before_its_leases_end(
    client: Client, redis_client: ArqRedis
) -> None:
    lease_s = 4.0
    async with serving(redis_client, lease_s=lease_s) as executor:
        job = await client.submit(Job(argv=("sleep", "4.5"), attempts=2), tenant="acme")
        await _starts(redis_client, job.id, 1)
        await redis_client.execute_command("CLIENT", "PAUSE", 5000, "ALL")  # type: ignore[no-untyped-call]
        began = time.monotonic()
        while not executor.stopped_at:
            await anyio.sleep(0.01)
        assert executor.stopped_at[0] - began < lease_s

        assert (await job.result(timeout=SOON_S)).ok
    assert executor.began == [job.id] * 2


async def test_killed_connections_lose_and_repeat_nothing(
    client: Client, redis_client: ArqRedis, redis_url: str
) -> None:
    killer = connect(redis_url)
    async with serving(redis_client, slots=8, lease_s=2.0) as executor:
        jobs = await client.submit_many([Job(argv=("sleep", "0.02"))] * 200, tenant="acme")
        for _ in range(10):
            await anyio.sleep(0.05)
            await killer.client_kill_filter(_type="normal", skipme=True)
        with anyio.fail_after(SOON_S):
            while await killer.zcard(keys.queue("acme")):
                await anyio.sleep(0.05)
    results = [await job.result(timeout=SOON_S) for job in jobs]
    await killer.aclose(close_connection_pool=True)

    assert [result.outcome for result in results] == [Outcome.EXITED] * 200
    assert sorted(executor.began) == sorted(job.id for job in jobs)


@contextmanager
def _persistent_redis(directory: Path) -> Iterator[Callable[[], AbstractContextManager[str]]]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    socket = directory / "redis.sock"
    options = (
        *("--port", "0", "--unixsocket", str(socket), "--dir", str(directory), "--save", ""),
        *("--appendonly", "yes", "--appendfsync", "always", "--logfile", str(directory / "log")),
    )

    @contextmanager
    def run() -> Iterator[str]:
        socket.unlink(missing_ok=True)
        with subprocess.Popen([binary, *options]) as process:
            while not socket.exists():
                time.sleep(0.01)
            try:
                yield f"unix://{socket}"
            finally:
                process.kill()

    yield run


async def test_a_restart_of_redis_loses_nothing_and_the_worker_comes_back_by_itself() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="corral-") as name,
        _persistent_redis(Path(name)) as run,
    ):
        with run() as url:
            redis = connect(url)
            async with Client(url) as client:
                jobs = await client.submit_many(
                    [Job(argv=("sleep", "0.05"), attempts=3)] * 100, tenant="acme"
                )
        async with serving(redis):
            with run():
                await anyio.sleep(0.3)
            with run():
                async with Client(url) as client:
                    results = [await client.job(job.id).result(timeout=SOON_S) for job in jobs]
        await redis.aclose(close_connection_pool=True)

    assert [result.outcome for result in results] == [Outcome.EXITED] * 100


# Crowds.


async def _enqueue_raw(redis: ArqRedis, tenants: list[str]) -> None:
    payload = codec.serialize({"t": None, "f": keys.FUNCTION, "a": (ECHO,), "k": {}, "et": 1})
    script = Script("corral", "enqueue")
    for first in range(0, len(tenants), 500):
        part = tenants[first : first + 500]
        words = [
            word
            for tenant in part
            for word in (tenant, keys.new_job_id(tenant), payload, 0, "", "", "", "")
        ]
        await script.run(redis, len(part), *words)


async def test_ten_thousand_tenants_with_a_job_each_are_all_served(
    redis_client: ArqRedis,
) -> None:
    tenants = [f"t{number}" for number in range(10_000)]
    await _enqueue_raw(redis_client, tenants)
    async with serving(redis_client, slots=64, lease_s=10.0) as executor:
        with anyio.fail_after(140):
            while await cast("Awaitable[int]", redis_client.scard(keys.QUIET)) < 10_000:
                await anyio.sleep(0.1)

    assert len(executor.started) == len(set(executor.started)) == 10_000


async def test_a_hundred_thousand_jobs_of_one_tenant_do_not_hold_up_fifty_newcomers(
    client: Client, redis_client: ArqRedis
) -> None:
    slots = 8
    await _enqueue_raw(redis_client, ["big"] * 100_000)
    async with serving(redis_client, slots=slots, lease_s=10.0) as executor:
        while len(executor.started) < 100:
            await anyio.sleep(0.01)
        jobs = []
        waited = []
        for number in range(50):
            before = len(executor.started)
            job = await client.submit(ECHO, tenant=f"new-{number}")
            await job.result(timeout=SOON_S)
            waited.append(executor.started.index(job.id) - before)
            jobs.append(job)

    # Those that were claimed before, and those that started while the submit was on its way.
    assert sorted(waited)[25] <= 4 * slots


async def test_an_idle_worker_sends_few_commands_whatever_the_number_of_tenants(
    redis_client: ArqRedis, redis_url: str
) -> None:
    await _enqueue_raw(redis_client, [f"t{number}" for number in range(2000)])
    async with serving(redis_client, slots=64, lease_s=10.0):
        with anyio.fail_after(140):
            while await cast("Awaitable[int]", redis_client.scard(keys.QUIET)) < 2000:
                await anyio.sleep(0.1)
        await anyio.sleep(0.5)
        sent = 0
        watcher = connect(redis_url)
        async with watcher.monitor() as monitor:
            with anyio.move_on_after(3):
                while True:
                    sent += (await monitor.next_command())["client_type"] != "lua"
        await watcher.aclose(close_connection_pool=True)

    assert sent / 3 <= 5
