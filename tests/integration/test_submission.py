"""What stands in Redis once jobs are submitted, and what the same key twice comes to."""

from __future__ import annotations

import pytest
from arq.connections import ArqRedis
from support.serving import SOON_S, Serving, Watched

from corral import Client, ErrInvalidJob, Fault, Job, JobStatus, Limits, keys
from corral.submission import LONGEST_DELAY_S, MOST_BYTES_AT_ONCE, Request, Submission

ECHO = Job(argv=("echo", "hello"))
DAY_S = 24 * 3600
NAP = Job(argv=("sleep", "0.05"))


# When a job is to start.


@pytest.mark.parametrize("delay_s", [-1, float("nan"), float("inf"), -float("inf"), 1e15, 10**400])
async def test_a_delay_that_is_none_is_refused_and_nothing_is_written(
    client: Client, redis_client: ArqRedis, delay_s: float
) -> None:
    with pytest.raises(ErrInvalidJob) as caught:
        await client.submit(ECHO, tenant="acme", delay_s=delay_s, idempotency_key="order-1")

    assert caught.value.path == "$.delay_s"
    assert await redis_client.keys() == []


async def test_the_longest_delay_is_accepted(client: Client) -> None:
    job = await client.submit(ECHO, tenant="acme", delay_s=LONGEST_DELAY_S)

    assert await job.status() is JobStatus.DEFERRED
    assert await job.cancel()


# How much at once.


async def test_jobs_that_would_keep_redis_for_long_are_refused_and_nothing_is_written(
    client: Client, redis_client: ArqRedis
) -> None:
    large = Job(argv=("cat",), stdin=b"x" * (MOST_BYTES_AT_ONCE // 8))

    with pytest.raises(ErrInvalidJob, match="submit them in parts"):
        await client.submit_many([large] * 6, tenant="acme")
    assert await redis_client.keys() == []

    jobs = await client.submit_many([large] * 5, tenant="acme")  # base64 makes 4 bytes of 3
    assert await redis_client.zcard(keys.queue("acme")) == len(jobs) == 5


# Idempotency keys.


async def test_a_key_is_not_taken_by_a_job_that_could_not_be_queued(
    client: Client, redis_client: ArqRedis
) -> None:
    await redis_client.set(keys.queue("acme"), "not a queue")
    with pytest.raises(Fault, match="WRONGTYPE"):
        await client.submit(ECHO, tenant="acme", idempotency_key="order-1")

    left = {*await redis_client.keys()} - {b"arq:queue:acme", b"corral:tenants"}
    await redis_client.delete(keys.queue("acme"))
    job = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")

    assert left == set()
    assert await job.status() is JobStatus.QUEUED


async def test_the_same_idempotency_key_gives_the_same_job(
    client: Client, served: Serving, executor: Watched
) -> None:
    async with served():
        first = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")
        again = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")
        other = await client.submit(ECHO, tenant="blue", idempotency_key="order-1")
        with pytest.raises(ErrInvalidJob) as caught:
            await client.submit(NAP, tenant="acme", idempotency_key="order-1")
        await first.result(timeout=SOON_S)
        await other.result(timeout=SOON_S)
        later = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")

    assert first.id == again.id == later.id
    assert caught.value.path == "$.idempotency_key"
    assert sorted([first.id, other.id]) == sorted(executor.started)


async def test_a_key_is_free_once_the_result_of_its_job_is_kept_no_longer(
    client: Client, redis_client: ArqRedis, served: Serving, executor: Watched
) -> None:
    async with served():
        first = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")
        await first.result(timeout=SOON_S)
        await redis_client.delete(keys.result(first.id))  # as its expiry does
        again = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")
        same = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")

        assert (await again.result(timeout=SOON_S)).ok
        await redis_client.delete(keys.result(again.id))
        other = await client.submit(NAP, tenant="acme", idempotency_key="order-1")
        assert (await other.result(timeout=SOON_S)).ok

    assert again.id == same.id
    assert executor.started == [first.id, again.id, other.id]


async def test_a_key_is_not_free_while_its_job_waits_or_runs(
    client: Client, served: Serving, executor: Watched
) -> None:
    sleep = Job(argv=("sleep", "60"))
    job = await client.submit(sleep, tenant="acme", idempotency_key="order-1")
    waits = await client.submit(sleep, tenant="acme", idempotency_key="order-1")
    async with served():
        await executor.began.wait()
        runs = await client.submit(sleep, tenant="acme", idempotency_key="order-1")
        assert await job.cancel(timeout=SOON_S)
        ended = await client.submit(sleep, tenant="acme", idempotency_key="order-1")

    assert job.id == waits.id == runs.id == ended.id


async def test_the_key_of_a_job_for_later_is_kept_for_a_day_after_its_start(
    client: Client, redis_client: ArqRedis
) -> None:
    await client.submit(ECHO, tenant="acme", idempotency_key="now")
    await client.submit(ECHO, tenant="acme", idempotency_key="later", delay_s=2 * DAY_S)

    now, later = [
        await redis_client.ttl(f"corral:idempotency:acme:{key}") for key in ("now", "later")
    ]
    assert DAY_S - SOON_S < now <= DAY_S
    assert 3 * DAY_S - SOON_S < later <= 3 * DAY_S


async def test_equal_jobs_are_the_same_job_whatever_the_order_of_their_variables(
    client: Client,
) -> None:
    one = Job(
        argv=("env",),
        env={"A": "1", "B": "2"},
        labels={"a": "1", "b": "2"},
        limits=Limits(wall_s=5),
    )
    same = Job(
        argv=("env",),
        env={"B": "2", "A": "1"},
        labels={"b": "2", "a": "1"},
        limits=Limits(wall_s=5.0),
    )

    first = await client.submit(one, tenant="acme", idempotency_key="order-1")
    again = await client.submit(same, tenant="acme", idempotency_key="order-1")
    with pytest.raises(ErrInvalidJob):
        await client.submit(
            Job(argv=("env",), env={"A": "2", "B": "1"}), tenant="acme", idempotency_key="order-1"
        )

    assert one == same
    assert first.id == again.id


async def test_the_same_idempotency_key_twice_in_one_round_trip_gives_one_job(
    client: Client, redis_client: ArqRedis, served: Serving, executor: Watched
) -> None:
    once = Request(job=ECHO, tenant="acme", idempotency_key="order-1")
    without = Request(job=ECHO, tenant="acme")

    ids = await Submission(redis_client).send([once, without, once])
    async with served():
        for job_id in set(ids):
            await client.job(job_id).result(timeout=SOON_S)

    assert ids[0] == ids[2] != ids[1]
    assert sorted(executor.started) == sorted({*ids})


async def test_a_key_for_two_jobs_in_one_round_trip_queues_nothing(
    redis_client: ArqRedis,
) -> None:
    requests = [Request(job=job, tenant="acme", idempotency_key="order-1") for job in (ECHO, NAP)]

    with pytest.raises(ErrInvalidJob) as caught:
        await Submission(redis_client).send(requests)

    assert caught.value.path == "$.idempotency_key"
    assert await redis_client.keys() == []
