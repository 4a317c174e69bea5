"""What stands in Redis of a job: as long as it waits or runs, and nothing afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import anyio
import pytest
from arq.connections import ArqRedis
from msgspec import structs
from redis.asyncio import Redis
from support.serving import SOON_S, Serving, Watched, nothing_is_left, serving, until

from corral import Client, ErrInvalidJob, ErrSecurityViolation, Job, Outcome, Result, keys
from corral.scripts import Script
from corral_worker.executor.executor import Attempt
from corral_worker.queue.claims import Claims
from corral_worker.sandbox.stop import Stop

QUEUE = "arq:queue:acme"
ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))
FOR_EVER = -1
MONTH_S = 30 * 24 * 3600


class _Begun(Watched):
    """Tells when a program has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = anyio.Event()

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        async def begin() -> None:
            if attempt.begin is not None:
                await attempt.begin()
            self.begun.set()

        return await super().execute(structs.replace(attempt, begin=begin), stop)


async def _ends(redis: Redis, job_id: str) -> set[int]:
    """Return in how many ms what there is of a job goes away by itself."""
    names = [name async for name in redis.scan_iter(f"*:{job_id}")]
    return {await redis.pttl(name) for name in names if not name.startswith(b"arq:in-progress:")}


async def test_a_job_waits_for_as_long_as_it_takes(client: Client, redis_client: ArqRedis) -> None:
    now = await client.submit(ECHO, tenant="acme")
    later = await client.submit(ECHO, tenant="acme", delay_s=3600)
    soon = await client.submit(Job(argv=("echo",), start_within_s=60), tenant="acme")
    many = await client.submit_many([ECHO, ECHO], tenant="acme")

    for job in (now, later, soon, *many):
        assert await redis_client.exists(keys.job(job.id))
        assert await _ends(redis_client, job.id) == {FOR_EVER}


async def test_a_job_whose_worker_went_away_waits_for_as_long_as_it_takes(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    claims = Claims(redis_client, worker="lost", lease_s=60, most_lost=9)
    (claim,) = (await claims.take(1)).claims
    renewed = await Script("corral_worker.queue", "renew").run(
        redis_client, 60_000, claim.tenant, claim.job_id, claim.token
    )

    assert renewed == [1]
    assert await redis_client.exists(keys.job(job.id), keys.state(job.id)) == 2
    assert await _ends(redis_client, job.id) == {FOR_EVER}


async def test_the_payload_of_a_stock_client_keeps_the_end_arq_gave_it(
    pool: ArqRedis, redis_client: ArqRedis, client: Client, served: Serving
) -> None:
    await pool.enqueue_job(keys.FUNCTION, ECHO, _job_id="acme:1", _queue_name=QUEUE, _expires=60)
    assert 0 < await redis_client.pttl(keys.job("acme:1")) <= 60_000
    await redis_client.delete(keys.job("acme:1"))  # as if that had come

    async with served():
        result = await client.job("acme:1").result(timeout=SOON_S)

    assert result.outcome is Outcome.EXPIRED
    assert await nothing_is_left(redis_client)


# The ways out.


async def _runs(client: Client, _redis: Redis, executor: Watched) -> None:
    assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok


async def _is_rejected(client: Client, _redis: Redis, executor: Watched) -> None:
    with pytest.raises(ErrSecurityViolation):
        await (await client.submit(Job(argv=("echo",), user="root"), tenant="acme")).result()


async def _is_cancelled_in_the_queue(client: Client, _redis: Redis, executor: Watched) -> None:
    job = await client.submit(ECHO, tenant="acme", delay_s=3600)
    assert await job.cancel(timeout=SOON_S)


async def _is_cancelled_as_it_runs(client: Client, _redis: Redis, executor: Watched) -> None:
    job = await client.submit(SLEEP, tenant="acme")
    await executor.began.wait()
    assert await job.cancel(timeout=SOON_S)


async def _expires(client: Client, redis: Redis, executor: Watched) -> None:
    # What is suspended is not claimed: it is the sweep that finds it.
    await cast("Awaitable[int]", redis.hset(keys.tenant_settings("acme"), "suspended", "1"))
    job = await client.submit(Job(argv=("echo",), start_within_s=0.01), tenant="acme")
    assert (await job.result(timeout=SOON_S)).outcome is Outcome.EXPIRED


@pytest.mark.parametrize(
    "way_out", [_runs, _is_rejected, _is_cancelled_in_the_queue, _is_cancelled_as_it_runs, _expires]
)
async def test_nothing_of_a_job_is_left_but_its_result_however_it_ends(
    client: Client,
    redis_client: ArqRedis,
    served: Serving,
    executor: Watched,
    way_out: Callable[[Client, Redis, Watched], Awaitable[None]],
) -> None:
    async with served():
        with anyio.fail_after(2 * SOON_S):
            await way_out(client, redis_client, executor)

    assert await nothing_is_left(redis_client)


async def test_a_dead_letter_has_an_end_and_nothing_else_of_the_job_is_left(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    await redis_client.set(keys.job("acme:poison"), b"no job")
    await redis_client.zadd(QUEUE, {"acme:poison": 1})
    async with served():
        with pytest.raises(ErrInvalidJob):
            await client.job("acme:poison").result(timeout=SOON_S)

    dead = (keys.dead("acme:poison"), keys.death("acme:poison"))
    for name in dead:
        assert 0 < await redis_client.ttl(name) <= MONTH_S
    await redis_client.delete(keys.DEAD, *dead)
    assert await nothing_is_left(redis_client)


async def test_a_program_that_a_drain_stops_has_used_up_an_attempt_and_its_job_has_no_end(
    client: Client, redis_client: ArqRedis
) -> None:
    executor = _Begun()
    async with serving(redis_client, executor, drain_s=0):
        job = await client.submit(Job(argv=("sleep", "60"), attempts=2), tenant="acme")
        await executor.begun.wait()

    async def is_back() -> bool:
        return not await redis_client.exists(keys.in_progress(job.id))

    await until(is_back)
    starts = await cast("Awaitable[bytes]", redis_client.hget(keys.state(job.id), "starts"))
    assert starts == b"1"
    assert await redis_client.exists(keys.job(job.id), keys.state(job.id)) == 2
    assert await _ends(redis_client, job.id) == {FOR_EVER}
