"""A Redis that is full, and may not evict anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from arq.connections import ArqRedis
from support.serving import SOON_S, Serving, Watched, until

from corral import Client, ErrDaemonUnavailable, Job, JobStatus, keys
from corral.scripts import Script
from corral_worker.admission.gate import Gate
from corral_worker.queue.claims import Claims
from corral_worker.queue.dead import DeadLetters
from corral_worker.queue.tenant_config import TenantConfig
from corral_worker.queue.tenants import Tenants

ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))
Full = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def full(redis_client: ArqRedis) -> Full:
    @asynccontextmanager
    async def full() -> AsyncIterator[None]:
        await redis_client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            await redis_client.config_set("maxmemory", 0)

    return full


async def test_a_submit_is_refused_with_an_error_that_says_so_and_leaves_nothing(
    client: Client, redis_client: ArqRedis, full: Full
) -> None:
    async with full():
        with pytest.raises(ErrDaemonUnavailable, match=r"is full.*nothing was queued") as caught:
            await client.submit(ECHO, tenant="acme", idempotency_key="order-17")
    assert (caught.value.retryable, caught.value.retry_safety) == (True, "not_started")
    assert caught.value.context["reason"] == "full"
    assert await redis_client.keys() == []

    job = await client.submit(ECHO, tenant="acme", idempotency_key="order-17")
    assert await job.status() is JobStatus.QUEUED


async def test_what_runs_and_what_waits_ends_and_can_be_cancelled(
    client: Client, redis_client: ArqRedis, served: Serving, executor: Watched, full: Full
) -> None:
    async with served(slots=1):
        running = await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()
        queued = await client.submit(ECHO, tenant="acme")
        delayed = await client.submit(ECHO, tenant="acme", delay_s=3600)
        async with full():
            assert await delayed.cancel(timeout=SOON_S)
            assert await running.cancel(timeout=SOON_S)
            assert (await queued.result(timeout=SOON_S)).stdout == b"hello"
            assert not await redis_client.zcard(keys.queue("acme"))


async def test_a_worker_that_starts_takes_what_waits(
    client: Client, served: Serving, full: Full
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    async with full(), served():
        assert (await job.result(timeout=SOON_S)).ok


async def test_leases_are_renewed(client: Client, redis_client: ArqRedis, full: Full) -> None:
    job = await client.submit(ECHO, tenant="acme")
    (claim,) = (await Claims(redis_client, worker="one", lease_s=60, most_lost=3).take(1)).claims
    renew = Script("corral_worker.queue", "renew")
    async with full():
        assert await renew.run(redis_client, 600_000, "acme", job.id, claim.token) == [1]

    assert await redis_client.pttl(keys.in_progress(job.id)) > 60_000


async def test_a_worker_that_takes_no_jobs_says_why(
    client: Client, served: Serving, full: Full
) -> None:
    gate = Gate()
    gate.set(frozenset({"disk", "tasks"}))
    job = await client.submit(ECHO, tenant="acme")

    async def told() -> bool:
        return (await job.explain()).hosts_short_of == ("disk", "tasks")

    async def told_no_more() -> bool:
        return (await job.explain()).hosts_short_of == ()

    async with full(), served(gate=gate):
        await until(told)
        gate.set(frozenset())
        await until(told_no_more)


async def test_operators_are_obeyed(redis_client: ArqRedis, full: Full) -> None:
    tenants = Tenants(redis_client)
    async with full():
        await tenants.set("greedy", TenantConfig(suspended=True, depth=1))
        assert (await tenants.show("greedy")).holds.suspended
        await tenants.set_defaults(TenantConfig(), unknown="closed")
        assert (await tenants.defaults()).unknown == "closed"
        assert await tenants.remove("greedy")


async def test_a_dead_letter_can_be_put_back(
    client: Client, redis_client: ArqRedis, served: Serving, full: Full
) -> None:
    await redis_client.set(keys.job("acme:poison"), b"no job")
    await redis_client.zadd(keys.queue("acme"), {"acme:poison": 1})
    dead = DeadLetters(redis_client)

    async def buried() -> bool:
        return bool(await redis_client.zcard(keys.DEAD))

    async with full():
        async with served():
            await until(buried)
        await dead.retry("acme:poison")

    assert await client.job("acme:poison").status() is JobStatus.QUEUED
