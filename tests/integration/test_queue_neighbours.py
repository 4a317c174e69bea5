"""Other applications of arq that share the Redis."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable
from typing import cast

import arq.jobs
import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from support.serving import SOON_S, Serving, until

from corral import Client, Job, keys

MAIL = "arq:queue:mail"
ECHO = Job(argv=("echo", "hello"))


@pytest.fixture
async def neighbour(redis_url: str) -> AsyncIterator[ArqRedis]:
    """The pool of an application that knows nothing of corral."""
    pool = await create_pool(RedisSettings.from_dsn(redis_url))
    yield pool
    await pool.aclose(close_connection_pool=True)


async def _all_keys_were_looked_at(pool: ArqRedis) -> None:
    """Return when workers have come upon a queue that was not there when they began."""
    job = await pool.enqueue_job("execute", ECHO, _queue_name="arq:queue:newcomer")
    assert job is not None
    assert (await job.result(timeout=SOON_S, poll_delay=0.01)).ok


async def test_queues_of_other_applications_are_left_alone(
    redis_client: ArqRedis, neighbour: ArqRedis, pool: ArqRedis, served: Serving
) -> None:
    pickled = await neighbour.enqueue_job("send_mail", "bob@example.org", _queue_name=MAIL)
    also_execute = await neighbour.enqueue_job("execute", "bob", _queue_name="arq:queue:pickle")
    assert pickled is not None
    assert also_execute is not None
    call = {"t": None, "f": "send_mail", "a": ["execute"], "k": {"v": 1}, "et": 1}
    await redis_client.set(keys.job("json"), json.dumps(call))
    await redis_client.zadd("arq:queue:json", {"json": 1})
    await cast("Awaitable[int]", redis_client.lpush(keys.job("list"), "no text at all"))
    await redis_client.zadd("arq:queue:list", {"list": 1})
    before = {key: await redis_client.dump(key) for key in await redis_client.keys()}

    async with served():
        await _all_keys_were_looked_at(pool)

    assert {key: await redis_client.dump(key) for key in before} == before
    tenants = await cast("Awaitable[set[bytes]]", redis_client.smembers(keys.TENANTS))
    assert tenants == {b"acme", b"newcomer"}


async def test_an_aborted_job_of_another_application_is_left_to_it(
    redis_client: ArqRedis, neighbour: ArqRedis, pool: ArqRedis, served: Serving
) -> None:
    job = await neighbour.enqueue_job("send_mail", _job_id="mail:1", _queue_name=MAIL)
    assert job is not None
    await redis_client.zadd(keys.ABORT, {"mail:1": 1})

    async with served():
        await _all_keys_were_looked_at(pool)

    assert await job.status() is arq.jobs.JobStatus.queued
    assert await redis_client.zscore(keys.ABORT, "mail:1") is not None


@pytest.mark.parametrize(
    "envelope",
    [
        pytest.param(
            ' {"v": 1, "f" : "execute", "et": 1, "a": [{"argv": ["echo"], "stdin": "%s"}]}',
            id="other order, spaces",
        ),
        pytest.param(
            '{"a":[{"argv":["echo"],"stdin":"%s"}],"et":1,"f":"execute","k":{},"t":null,"v":1}',
            id="sorted",
        ),
        pytest.param(
            '{"t":null,"f":"execute","a":[{"argv":["echo"],"stdin":"%s"}],"k":{},"et":1,"v":1}',
            id="as arq",
        ),
    ],
)
@pytest.mark.parametrize("size", [0, 100_000])
async def test_a_job_of_corral_makes_a_queue_a_tenants_whoever_wrote_it(
    client: Client, redis_client: ArqRedis, served: Serving, envelope: str, size: int
) -> None:
    stdin = base64.b64encode(bytes(size)).decode()
    await redis_client.set(keys.job("other:1"), envelope % stdin)
    await redis_client.zadd(keys.queue("other"), {"other:1": 1})
    async with served():
        assert (await client.job("other:1").result(timeout=SOON_S)).ok


async def test_ids_whose_jobs_have_expired_hide_no_newer_ones(
    client: Client, redis_client: ArqRedis, pool: ArqRedis, served: Serving
) -> None:
    await redis_client.zadd(keys.queue("other"), {f"gone:{number}": 1 for number in range(10)})
    job = await pool.enqueue_job(
        "execute", ECHO, _job_id="other:1", _queue_name=keys.queue("other")
    )
    assert job is not None
    async with served():
        assert (await client.job("other:1").result(timeout=SOON_S)).ok

        async def done() -> bool:
            return not await redis_client.zcard(keys.queue("other"))

        await until(done)
