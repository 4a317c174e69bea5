"""Results that Redis refuses for a while."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager

import anyio
import pytest
from arq.connections import ArqRedis
from structlog.testing import capture_logs
from support.null_executor import NullExecutor
from support.serving import SOON_S, Serving, Watched

from corral import Client, Job, keys
from corral_worker.queue.claims import Claims
from corral_worker.queue.commits import Commits, Keep
from corral_worker.queue.leases import Lease
from corral_worker.queue.service import JobService
from corral_worker.queue.starts import Starts

ECHO = Job(argv=("echo", "hello"))
Logs = list[MutableMapping[str, object]]


@asynccontextmanager
async def serving_one(redis: ArqRedis, *, lease_s: float) -> AsyncIterator[None]:
    """Serve one job with a lease of so many seconds, by this machine's clock alone.

    Redis refuses all commits, and takes claims and renewals.
    """
    (claim,) = (await Claims(redis, worker="one", lease_s=60, most_lost=3).take(1)).claims
    await redis.set(keys.ESTIMATE, "not what the script expects")
    # As if each try took longer than a lease.
    commits = Commits(redis, keep=Keep(), lease_s=0.001)
    starts = Starts(redis)
    service = JobService(executor=NullExecutor(), starts=starts, commits=commits)
    over_at = time.monotonic() + lease_s
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commits.run)
        tasks.start_soon(starts.run)
        async with anyio.create_task_group() as job:
            job.start_soon(service.serve, Lease(claim, safe_until=over_at, over_at=over_at))
            yield
        tasks.cancel_scope.cancel()


async def test_a_result_that_redis_refuses_is_kept_for_as_long_as_its_lease_is(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    with capture_logs() as logs:
        async with serving_one(redis_client, lease_s=3600):
            await _refused(logs, times=3)
            await redis_client.delete(keys.ESTIMATE)
            assert (await job.result(timeout=SOON_S)).stdout == b"hello"

    assert {entry["event"] for entry in logs} == {"commit.again"}
    assert "WRONGTYPE" in str(logs[0]["detail"])


async def test_a_result_that_redis_refuses_is_given_up_with_its_lease_and_the_log_says_so(
    client: Client, redis_client: ArqRedis
) -> None:
    await client.submit(ECHO, tenant="acme")
    with capture_logs() as logs:
        async with serving_one(redis_client, lease_s=0.2):
            pass

    assert logs[-1]["event"] == "commit.given_up"


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_drain_waits_no_longer_than_a_lease_for_a_redis_that_refuses_all_results(
    client: Client, redis_client: ArqRedis, served: Serving, executor: Watched, *, cancelled: bool
) -> None:
    with capture_logs() as logs, anyio.fail_after(SOON_S):
        async with served(lease_s=1.0) as consumer:
            job = await client.submit(Job(argv=("sleep", "60")), tenant="acme")
            await executor.began.wait()
            await redis_client.set(keys.ESTIMATE, "not what the script expects")
            if cancelled:
                with pytest.raises(TimeoutError):
                    await job.cancel(timeout=0)
                await _refused(logs, times=1)
            await consumer.drain(0.0)

    assert "commit.given_up" in [entry["event"] for entry in logs]


async def _refused(logs: Logs, *, times: int) -> None:
    with anyio.fail_after(SOON_S):
        while len([entry for entry in logs if entry["event"] == "commit.again"]) < times:
            await anyio.sleep(0.01)
