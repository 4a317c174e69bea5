"""The consumer with corral's client: submit, caps, cancel, results."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Awaitable
from typing import cast

import pytest
from arq.connections import ArqRedis
from support.serving import SOON_S, Serving, Watched, nothing_is_left, until

import corral
from corral import (
    Client,
    ErrJobNotFound,
    ErrQuotaExceeded,
    Job,
    Outcome,
    Result,
    keys,
)
from corral_worker.queue.commits import Keep

QUEUE = "arq:queue:acme"
ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))
NAP = Job(argv=("sleep", "0.05"))


async def test_a_job_comes_back_as_its_result(client: Client, served: Serving) -> None:
    async with served():
        job = await client.submit(ECHO, tenant="acme")

        assert (await job.result(timeout=SOON_S)).stdout == b"hello"


async def test_a_job_for_later_starts_then(
    client: Client, served: Serving, executor: Watched
) -> None:
    async with served():
        began = time.monotonic()
        job = await client.submit(ECHO, tenant="acme", delay_s=0.3)
        assert await job.status() is corral.JobStatus.DEFERRED
        await job.result(timeout=SOON_S)
        assert time.monotonic() - began >= 0.3

        at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.3)
        job = await client.submit(ECHO, tenant="acme", start_at=at)
        await job.result(timeout=SOON_S)
        assert dt.datetime.now(dt.UTC) >= at


async def test_a_job_that_could_not_start_in_time_expires(
    client: Client, served: Serving, executor: Watched
) -> None:
    async with served(slots=1):
        await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()
        job = await client.submit(Job(argv=("echo",), start_within_s=0.1), tenant="acme")

        assert (await job.result(timeout=SOON_S)).outcome is Outcome.EXPIRED


async def test_results_are_kept_as_long_as_the_settings_say(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    async with served(keep=Keep(result_s=30)):
        job = await client.submit(ECHO, tenant="acme")
        await job.result(timeout=SOON_S)

    for key in (keys.result(job.id), keys.results("acme")):
        assert 0 < await redis_client.pttl(key) <= 30_000


async def test_a_result_that_is_kept_no_longer_is_not_found(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    async with served(keep=Keep(result_s=0.05)):
        job = await client.submit(ECHO, tenant="acme")

        async def is_forgotten() -> bool:
            return not await redis_client.keys(f"*{job.id}*")

        await until(is_forgotten)

    assert await redis_client.exists(keys.results("acme")) == 0
    with pytest.raises(ErrJobNotFound):
        await job.result(timeout=SOON_S)


async def test_a_results_stream_keeps_the_last_entries_and_not_all(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    # Redis trims by whole nodes, of a hundred entries.
    async with served(slots=64, keep=Keep(result_s=60, stream_entries=10)):
        jobs = await client.submit_many([ECHO] * 400, tenant="acme")
        for job in jobs:
            await job.result(timeout=SOON_S)

    assert 10 <= await redis_client.xlen(keys.results("acme")) < 10 + 2 * 100


async def test_a_cancel_in_the_queue_keeps_results_as_the_workers_do(
    client: Client, served: Serving, redis_client: ArqRedis
) -> None:
    async def told() -> bool:
        return await cast("Awaitable[bool]", redis_client.hexists(keys.SWEEP, "keep_ms"))

    async with served(keep=Keep(result_s=7200, stream_entries=100_000), drain_s=1):
        await until(told)
    stream = keys.results("acme")
    async with redis_client.pipeline(transaction=False) as pipe:
        for number in range(3000):
            pipe.xadd(stream, {"id": f"acme:{number}", "outcome": "exited", "data": "{}"})
        await pipe.execute()
    job = await client.submit(ECHO, tenant="acme")

    assert await job.cancel()

    assert await redis_client.xlen(stream) == 3001
    for name in (stream, keys.result(job.id)):
        assert 7000 < await redis_client.ttl(name) <= 7200


async def test_no_results_stream_is_written_that_nobody_wants(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    async with served(keep=Keep(result_s=60, stream_entries=0)):
        await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)

    assert await redis_client.exists(keys.results("acme")) == 0


async def test_many_jobs_are_submitted_at_once(client: Client, served: Serving) -> None:
    async with served(slots=16):
        jobs = await client.submit_many(
            [Job(argv=("echo", str(number))) for number in range(100)], tenant="acme"
        )
        outputs = [(await job.result(timeout=SOON_S)).stdout for job in jobs]

    assert outputs == [str(number).encode() for number in range(100)]


async def test_a_tenant_at_its_depth_is_told_how_long_to_wait_and_nothing_is_queued(
    client: Client, redis_client: ArqRedis
) -> None:
    await cast(
        "Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), mapping={"depth": 3})
    )

    with pytest.raises(ErrQuotaExceeded, match="acme has 3 jobs") as caught:
        await client.submit_many([ECHO] * 4, tenant="acme")

    assert caught.value.retry_after_s is not None
    assert caught.value.retryable
    assert 0 < caught.value.retry_after_s <= 60
    assert caught.value.context["quota"] == "depth"
    assert await redis_client.exists(keys.queue("acme")) == 0


async def test_a_job_beyond_the_payload_cap_is_refused_for_good(
    client: Client, redis_client: ArqRedis
) -> None:
    await cast(
        "Awaitable[int]",
        redis_client.hset(keys.tenant_settings("acme"), mapping={"payload_bytes": 1000}),
    )

    with pytest.raises(ErrQuotaExceeded) as caught:
        await client.submit(Job(argv=("cat",), stdin=b"x" * 1000), tenant="acme")

    assert caught.value.retry_after_s is None
    assert not caught.value.retryable


async def test_where_unknown_tenants_are_closed_out_only_known_ones_submit(
    client: Client, redis_client: ArqRedis
) -> None:
    await cast("Awaitable[int]", redis_client.hset(keys.DEFAULTS, mapping={"unknown": "closed"}))
    await cast(
        "Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), mapping={"weight": 1})
    )

    await client.submit(ECHO, tenant="acme")
    with pytest.raises(ErrQuotaExceeded, match="blue is not known"):
        await client.submit(ECHO, tenant="blue")


async def test_a_suspended_tenants_jobs_wait(
    client: Client, redis_client: ArqRedis, served: Serving, executor: Watched
) -> None:
    await cast(
        "Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), mapping={"suspended": 1})
    )
    async with served():
        await client.submit(ECHO, tenant="acme")
        other = await client.submit(ECHO, tenant="blue")
        await other.result(timeout=SOON_S)

    assert [other.id] == executor.started


async def test_a_queued_job_is_cancelled_exactly(
    client: Client, redis_client: ArqRedis, served: Serving, executor: Watched
) -> None:
    async with served(slots=1):
        running = await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()
        queued = await client.submit(ECHO, tenant="acme")

        assert await queued.cancel(timeout=SOON_S)
        assert Result(outcome=Outcome.CANCELLED) == await queued.result(timeout=SOON_S)
        assert await running.cancel(timeout=SOON_S)

    assert [running.id] == executor.started
    assert await nothing_is_left(redis_client)


async def test_a_running_job_is_cancelled_at_once_not_at_the_next_renewal(
    client: Client, served: Serving, executor: Watched
) -> None:
    async with served(lease_s=10 * SOON_S):
        job = await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()

        assert await job.cancel(timeout=SOON_S)
        assert await job.cancel(timeout=SOON_S), "a second cancel tells the same"


async def test_a_finished_jobs_cancel_is_false_and_an_unknown_ones_leaves_no_trace(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    async with served():
        job = await client.submit(ECHO, tenant="acme")
        await job.result(timeout=SOON_S)
        assert not await job.cancel(timeout=SOON_S)

        with pytest.raises(ErrJobNotFound):
            await client.job("acme:nobody").cancel()

    assert await nothing_is_left(redis_client)
