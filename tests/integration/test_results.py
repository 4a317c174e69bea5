"""A tenant's results as a queue: who is told what, how long, and what is left of consumers."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import cast

import anyio
import pytest
from arq.connections import ArqRedis
from support.serving import SOON_S, Serving, until

from corral import Client, ErrSecurityViolation, Job, keys

ECHO = Job(argv=("echo", "hello"))
STREAM = keys.results("acme")


async def test_results_are_a_queue_of_their_own(client: Client, served: Serving) -> None:
    async with served():
        jobs = await client.submit_many(
            [Job(argv=("echo", str(number))) for number in range(5)], tenant="acme"
        )
        rejected = await client.submit(Job(argv=("echo",), user="root"), tenant="acme")
        seen: dict[str, bytes | str] = {}
        with anyio.fail_after(SOON_S):
            async for finished in client.results("acme", group="web", consumer="one"):
                try:
                    seen[finished.job_id] = (await finished.result()).stdout
                except ErrSecurityViolation as error:
                    seen[finished.job_id] = error.code
                await finished.ack()
                if len(seen) == 6:
                    break

    expected: dict[str, bytes | str] = {
        job.id: str(number).encode() for number, job in enumerate(jobs)
    }
    assert expected | {rejected.id: "security_violation"} == seen


async def test_a_result_that_was_not_acknowledged_comes_again(
    client: Client, served: Serving
) -> None:
    async with served():
        job = await client.submit(ECHO, tenant="acme")
        for _ in range(2):
            with anyio.fail_after(SOON_S):
                async for finished in client.results("acme", consumer="one"):
                    assert finished.job_id == job.id
                    break


# Consumers without a name.


async def _consumers(redis: ArqRedis) -> list[bytes]:
    found = await cast("Awaitable[list[dict[str, bytes]]]", redis.xinfo_consumers(STREAM, "web"))
    return [each["name"] for each in found]


async def _no_consumer_is_left(redis: ArqRedis) -> bool:
    return await _consumers(redis) == []


@pytest.fixture
async def told(redis_client: ArqRedis) -> str:
    """A result in the stream: the id of its job."""
    await redis_client.xadd(STREAM, {"id": "acme:1", "outcome": "exited", "data": "{}"})
    return "acme:1"


async def test_a_consumer_without_a_name_is_gone_when_its_iteration_is_left(
    client: Client, redis_client: ArqRedis, told: str
) -> None:
    async for finished in client.results("acme", group="web"):
        assert finished.job_id == told
        assert len(await _consumers(redis_client)) == 1
        await finished.ack()
        break

    await until(lambda: _no_consumer_is_left(redis_client))


async def test_a_consumer_without_a_name_is_gone_when_its_iteration_is_cancelled(
    client: Client, redis_client: ArqRedis, told: str
) -> None:
    with anyio.CancelScope() as scope:
        async for finished in client.results("acme", group="web"):
            await finished.ack()
            scope.cancel()

    await until(lambda: _no_consumer_is_left(redis_client))


async def test_a_consumer_without_a_name_is_gone_when_its_client_is(
    redis_url: str, redis_client: ArqRedis, told: str
) -> None:
    async with Client(redis_url) as client:
        results = client.results("acme", group="web")
        await (await anext(results)).ack()

    assert await _no_consumer_is_left(redis_client)


async def test_a_consumer_stays_that_holds_what_is_not_acknowledged(
    redis_url: str, redis_client: ArqRedis, told: str
) -> None:
    async with Client(redis_url) as client:
        async for _ in client.results("acme", group="web"):
            break

    assert len(await _consumers(redis_client)) == 1
    pending = await cast("Awaitable[dict[str, int]]", redis_client.xpending(STREAM, "web"))
    assert pending["pending"] == 1, "another consumer takes it over"


async def test_a_consumer_with_a_name_stays(
    redis_url: str, redis_client: ArqRedis, told: str
) -> None:
    async with Client(redis_url) as client:
        async for finished in client.results("acme", group="web", consumer="one"):
            await finished.ack()
            break

    assert await _consumers(redis_client) == [b"one"]


async def test_a_client_is_closed_though_the_stream_of_its_consumer_has_expired(
    redis_url: str, redis_client: ArqRedis, told: str
) -> None:
    async with Client(redis_url) as client:
        results = client.results("acme", group="web")
        await anext(results)
        await redis_client.delete(STREAM)

    assert not await redis_client.exists(STREAM)
