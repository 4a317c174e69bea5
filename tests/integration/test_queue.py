"""The consumer: caps over workers, order, drain, poison."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable
from typing import cast

import anyio
import pytest
from arq.connections import ArqRedis
from support.serving import SOON_S, Serving, Watched, nothing_is_left
from support.stops import asked

import corral
from corral import (
    Client,
    ErrInvalidJob,
    ErrJobNotFound,
    ErrWorkerLost,
    Fault,
    Job,
    Outcome,
    Result,
    codec,
    keys,
)
from corral.job_codec import MAX_PAYLOAD_BYTES
from corral_worker.admission.gate import Gate
from corral_worker.executor.executor import Attempt
from corral_worker.queue.claims import Batch, Claims
from corral_worker.sandbox.stop import Stop

QUEUE = "arq:queue:acme"
ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))
NAP = Job(argv=("sleep", "0.05"))


async def _starts(redis: ArqRedis, job_id: str) -> int:
    """Return how often a job's program may have begun."""
    value = await cast("Awaitable[bytes | None]", redis.hget(keys.state(job_id), "starts"))
    return int(value or 0)


async def test_two_workers_keep_one_cap(
    client: Client, redis_client: ArqRedis, served: Serving, executor: Watched
) -> None:
    await cast(
        "Awaitable[int]",
        redis_client.hset(keys.tenant_settings("acme"), mapping={"concurrency": 1}),
    )
    async with served(), served():
        jobs = await client.submit_many([NAP] * 10, tenant="acme")
        for job in jobs:
            assert (await job.result(timeout=SOON_S)).ok

    assert executor.most_running == 1


async def test_a_tenant_with_many_jobs_does_not_hold_up_newcomers(
    client: Client, served: Serving, executor: Watched
) -> None:
    await client.submit_many([NAP] * 500, tenant="acme")
    async with served(slots=4):
        while len(executor.started) < 20:
            await anyio.sleep(0.01)
        jobs = [await client.submit(ECHO, tenant=f"new-{number}") for number in range(10)]
        before = len(executor.started)
        for job in jobs:
            await job.result(timeout=SOON_S)
        last = max(executor.started.index(job.id) for job in jobs)

    assert last - before < 10 + 4 + 4, "after the newcomers' own and one a slot of the big one"


async def test_a_drained_worker_hands_back_what_its_grace_does_not_suffice_for(
    client: Client, redis_client: ArqRedis, served: Serving, executor: Watched
) -> None:
    async with served(slots=1, drain_s=0.05):
        once = await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()
    with pytest.raises(ErrWorkerLost) as caught:
        await once.result(timeout=SOON_S)
    assert caught.value.retry_safety == "started"

    executor.began = anyio.Event()
    async with served(slots=1, drain_s=0.05):
        again = await client.submit(Job(argv=("sleep", "1"), attempts=2), tenant="acme")
        await executor.began.wait()
    assert await again.status() is corral.JobStatus.QUEUED

    async with served(slots=1):
        assert (await again.result(timeout=SOON_S)).ok
    assert await nothing_is_left(redis_client)


async def test_a_drain_hands_back_what_was_claimed_and_not_begun_without_using_an_attempt(
    client: Client,
    redis_client: ArqRedis,
    served: Serving,
    executor: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def prepare(attempt: Attempt, stop: Stop) -> Result:
        executor.began.set()
        await asked(stop)  # as if its image were still being fetched
        raise ErrWorkerLost("stopped before the program started", retry_safety="not_started")

    jobs = await client.submit_many(
        [Job(argv=("echo", "hello"), start_within_s=3600)] * 3, tenant="acme"
    )
    with monkeypatch.context() as patch:
        patch.setattr(executor, "execute", prepare)
        async with served(slots=8, drain_s=0.05):
            await executor.began.wait()
    for job in jobs:
        assert await job.status() is corral.JobStatus.QUEUED
        assert await _starts(redis_client, job.id) == 0
        assert await redis_client.zscore(keys.DEADLINES, job.id) is not None

    async with served():
        for job in jobs:
            assert (await job.result(timeout=SOON_S)).ok
    assert await nothing_is_left(redis_client)


async def test_jobs_that_are_claimed_as_the_host_runs_short_go_back_without_using_an_attempt(
    client: Client,
    redis_client: ArqRedis,
    served: Serving,
    executor: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate()
    take = Claims.take

    async def take_meanwhile(claims: Claims, most: int) -> Batch:
        batch = await take(claims, most)
        gate.set(frozenset({"tasks"}))
        return batch

    jobs = await client.submit_many([ECHO] * 3, tenant="acme")
    async with served(slots=8, gate=gate):
        with monkeypatch.context() as patch:
            patch.setattr(Claims, "take", take_meanwhile)
            with anyio.fail_after(SOON_S):
                while len(executor.started) < len(jobs):
                    await anyio.sleep(0.01)
                for job in jobs:
                    while await job.status() is not corral.JobStatus.QUEUED:
                        await anyio.sleep(0.01)
        for job in jobs:
            assert await _starts(redis_client, job.id) == 0

        gate.set(frozenset())
        for job in jobs:
            assert (await job.result(timeout=SOON_S)).ok
    assert await nothing_is_left(redis_client)


async def test_a_drain_in_a_hurry_gives_no_grace(
    client: Client, served: Serving, executor: Watched
) -> None:
    hurry = anyio.Event()
    async with served() as consumer, anyio.create_task_group() as tasks:
        job = await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()

        async def drain() -> None:
            await consumer.drain(3600.0, hurry=hurry)

        tasks.start_soon(drain)
        await anyio.wait_all_tasks_blocked()
        hurry.set()
        with pytest.raises(ErrWorkerLost):
            await job.result(timeout=SOON_S)


async def test_a_draining_worker_takes_no_more_jobs(
    client: Client, served: Serving, executor: Watched
) -> None:
    async with served() as consumer:
        await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)
        await consumer.drain(1.0)
        job = await client.submit(ECHO, tenant="acme")
        with pytest.raises(TimeoutError):
            await job.result(timeout=0.3)

    async with served():
        assert (await job.result(timeout=SOON_S)).ok


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        pytest.param(b"\x80\x04garbage", "$", id="pickle"),
        pytest.param(b"\x00\xffgarbage", "$", id="garbage"),
        pytest.param(b"[" * 100_000, "$", id="deep"),
        pytest.param(b'{"v":1,"f":"other","et":1,"a":[{"argv":["x"]}]}', "$.f", id="function"),
        pytest.param(b'{"v":1,"f":"execute","et":1,"a":[{"argv":[]}]}', "$.argv", id="empty argv"),
        pytest.param(b'{"v":9}', "$.v", id="newer version"),
        pytest.param(b"x" * (MAX_PAYLOAD_BYTES + 1), "$", id="too large"),
    ],
)
async def test_a_poisoned_payload_fails_alone_and_is_kept_aside(
    client: Client, redis_client: ArqRedis, served: Serving, payload: bytes, path: str
) -> None:
    await redis_client.set(keys.job("acme:poison"), payload)
    await redis_client.zadd(QUEUE, {"acme:poison": 1})
    async with served():
        with pytest.raises(ErrInvalidJob) as caught:
            await client.job("acme:poison").result(timeout=SOON_S)
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok

    assert path == caught.value.path
    assert await redis_client.get(keys.dead("acme:poison")) == payload
    assert await redis_client.zrange(keys.DEAD, 0, -1) == [b"acme:poison"]


async def test_a_poisoned_payload_that_is_due_for_ever_fails_readably_though_clocks_differ(
    client: Client, redis_client: ArqRedis, served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3600 * 1_000_000_000)
    await redis_client.set(keys.job("acme:poison"), b'{"v":1,"f":"other","et":1,"a":[]}')
    await redis_client.zadd(QUEUE, {"acme:poison": -math.inf})
    async with served():
        with pytest.raises(ErrInvalidJob) as caught:
            await client.job("acme:poison").result(timeout=SOON_S)

    assert caught.value.path == "$.f"


async def test_a_bug_of_the_executor_ends_its_job_alone_and_tells_nothing_of_the_host(
    client: Client,
    served: Serving,
    executor: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def crash(attempt: Attempt, stop: Stop) -> Result:
        raise LookupError("/root/.ssh is readable")

    async with served():
        with monkeypatch.context() as patch:
            patch.setattr(executor, "execute", crash)
            with pytest.raises(Fault, match="LookupError") as caught:
                await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok

    assert "/root" not in str(caught.value)
    assert (caught.value.retry_safety, caught.value.retryable) == ("unknown", False)


async def test_a_job_due_at_no_time_at_all_stops_no_worker(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    for score in (math.inf, -math.inf, 1e300):
        await redis_client.zadd(QUEUE, {f"acme:{score}": score})
    async with served():
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok
        with pytest.raises(ErrJobNotFound):
            await client.job("acme:unknown").result(timeout=SOON_S)


async def test_names_that_are_no_text_stop_no_worker(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    payload = codec.serialize(
        {"t": None, "f": keys.FUNCTION, "a": (ECHO,), "k": {}, "et": 1_700_000_000_000}
    )
    strange_id, strange_tenant = b"\xff\xfe", b"\xfd/../x"
    await cast("Awaitable[int]", redis_client.sadd(keys.TENANTS, strange_tenant, b"acme"))
    for queue in (QUEUE.encode(), b"arq:queue:" + strange_tenant):
        await redis_client.set(b"arq:job:" + strange_id, payload)
        await redis_client.zadd(queue, {strange_id: 1})
        async with served():
            with anyio.fail_after(SOON_S):
                while not await redis_client.exists(b"arq:result:" + strange_id):
                    await anyio.sleep(0.02)
            assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok
        await redis_client.delete(b"arq:result:" + strange_id)


async def test_a_job_whose_payload_is_gone_expires(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    await redis_client.zadd(QUEUE, {"acme:gone": 1})
    async with served():
        result = await client.job("acme:gone").result(timeout=SOON_S)

    assert result.outcome is Outcome.EXPIRED


async def test_a_lock_without_end_does_not_loop_a_claim(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    await redis_client.set(keys.in_progress("acme:stuck"), b"1")
    await redis_client.zadd(QUEUE, {"acme:stuck": 1})
    async with served():
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok


async def test_one_listener_serves_many_waits_and_survives_a_killed_connection(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    async with served():
        await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)
        job = await client.submit(Job(argv=("sleep", "0.5")), tenant="acme")
        async with asyncio.TaskGroup() as tasks:
            waits = [tasks.create_task(job.result(timeout=SOON_S)) for _ in range(3)]
            await anyio.sleep(0.1)
            await redis_client.client_kill_filter(_type="pubsub", skipme=True)
        assert [wait.result().ok for wait in waits] == [True] * 3
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok
