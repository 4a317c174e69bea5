"""The consumer with clients of stock arq."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import cast

import arq
import arq.jobs
import pytest
from arq.connections import ArqRedis
from arq.jobs import JobStatus
from support.serving import SOON_S, Serving, Watched, nothing_is_left, until

from corral import (
    Client,
    ErrSecurityViolation,
    Job,
    JobCancelled,
    Outcome,
    codec,
    keys,
)

QUEUE = "arq:queue:acme"
ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))
NAP = Job(argv=("sleep", "0.05"))


async def _enqueue(pool: ArqRedis, job: object, job_id: str = "acme:1") -> arq.jobs.Job:
    enqueued = await pool.enqueue_job("execute", job, _job_id=job_id, _queue_name=QUEUE)
    assert enqueued is not None
    return enqueued


async def test_a_job_of_stock_arq_is_found_within_half_a_second(
    pool: ArqRedis, served: Serving
) -> None:
    took = []
    async with served():
        for number in range(5):
            await until(lambda: _is_member(pool, keys.QUIET, "acme"))
            began = time.monotonic()
            job = await _enqueue(pool, ECHO, f"acme:{number}")
            await job.result(timeout=SOON_S, poll_delay=0.01)
            took.append(time.monotonic() - began)

    # Whatever else the machine does: one of them shows it.
    assert min(took) < 0.5


async def test_a_result_for_stock_arq_is_arqs(pool: ArqRedis, served: Serving) -> None:
    async with served():
        job = await _enqueue(pool, ECHO)
        result = await job.result(timeout=SOON_S, poll_delay=0.01)
        info = await job.result_info()

    assert (result.outcome, result.stdout) == (Outcome.EXITED, b"hello")
    assert info is not None
    assert (info.function, info.success, info.queue_name, info.job_id, info.job_try) == (
        *("execute", True, QUEUE, "acme:1", 1),
    )
    assert info.enqueue_time <= info.start_time <= info.finish_time
    assert await nothing_is_left(pool)


async def _is_member(redis: ArqRedis, key: str, member: str) -> bool:
    return bool(await cast("Awaitable[int]", redis.sismember(key, member)))


async def test_a_stock_arq_job_of_a_tenant_nobody_knows_is_found_too(
    pool: ArqRedis, served: Serving
) -> None:
    async with served():
        for tenant in ("nobody-knows", "nor-this-one"):
            job = await pool.enqueue_job(
                "execute", ECHO, _job_id=f"{tenant}:1", _queue_name=f"arq:queue:{tenant}"
            )
            assert job is not None
            assert (await job.result(timeout=5, poll_delay=0.01)).ok


async def test_stock_arq_sees_status_and_definition(
    pool: ArqRedis, served: Serving, executor: Watched
) -> None:
    async with served(slots=1):
        running = await _enqueue(pool, SLEEP, "acme:1")
        await executor.began.wait()
        queued = await _enqueue(pool, ECHO, "acme:2")

        assert JobStatus.in_progress == await running.status()
        assert JobStatus.queued == await queued.status()
        info = await running.info()
        assert info is not None
        assert (info.function, info.args) == ("execute", (SLEEP,))


async def test_stock_arq_aborts_a_running_job(
    pool: ArqRedis, served: Serving, executor: Watched
) -> None:
    async with served():
        job = await _enqueue(pool, SLEEP)
        await executor.began.wait()

        assert await job.abort(timeout=5, poll_delay=0.01)
        with pytest.raises(JobCancelled):
            await job.result(timeout=SOON_S)

    assert await nothing_is_left(pool)


async def test_stock_arq_aborts_a_queued_job_which_never_starts(
    pool: ArqRedis, served: Serving, executor: Watched
) -> None:
    async with served(slots=1):
        await _enqueue(pool, SLEEP, "acme:1")
        await executor.began.wait()
        job = await _enqueue(pool, ECHO, "acme:2")

        assert await job.abort(timeout=5, poll_delay=0.01)

    assert executor.started == ["acme:1"]


async def test_aborts_that_must_wait_hold_up_no_others(
    pool: ArqRedis, served: Serving, executor: Watched
) -> None:
    await cast("Awaitable[int]", pool.hset(keys.tenant_settings("noisy"), "suspended", "1"))
    for _ in range(250):
        waiting = await pool.enqueue_job("execute", ECHO, _queue_name="arq:queue:noisy")
        assert waiting is not None
        await pool.zadd(keys.ABORT, {waiting.job_id: 1})
    async with served():
        job = await _enqueue(pool, SLEEP)
        await executor.began.wait()

        assert await job.abort(timeout=SOON_S, poll_delay=0.01)

    assert await pool.zcard(keys.ABORT) == 250


async def test_an_abort_of_an_unknown_job_does_not_hit_a_later_one_of_its_id(
    pool: ArqRedis, served: Serving
) -> None:
    async with served():
        assert not await arq.jobs.Job("acme:1", pool, QUEUE, codec.deserialize).abort()

        async def forgotten() -> bool:
            return not await pool.zcard(keys.ABORT)

        await until(forgotten)
        job = await _enqueue(pool, ECHO)
        assert (await job.result(timeout=5, poll_delay=0.01)).ok


async def test_stock_arq_gets_a_typed_rejection(pool: ArqRedis, served: Serving) -> None:
    async with served():
        job = await _enqueue(pool, Job(argv=("echo",), network="host"))

        with pytest.raises(ErrSecurityViolation) as caught:
            await job.result(timeout=5, poll_delay=0.01)

    assert [violation.rule for violation in caught.value.violations] == ["host_network"]


async def test_stock_arqs_own_ids_serve_too(pool: ArqRedis, served: Serving) -> None:
    async with served():
        job = await pool.enqueue_job("execute", ECHO, _queue_name=QUEUE)
        assert job is not None

        assert (await job.result(timeout=5, poll_delay=0.01)).ok


async def test_a_worker_whose_clock_is_two_seconds_off_serves_at_once(
    client: Client, served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns
    for skew in (-2_000_000_000, 2_000_000_000):
        monkeypatch.setattr(time, "time_ns", lambda skew=skew: real() + skew)
        async with served():
            job = await client.submit(Job(argv=("echo",), start_within_s=1.0), tenant="acme")
            result = await job.result(timeout=SOON_S)

            assert result.outcome is Outcome.EXITED
