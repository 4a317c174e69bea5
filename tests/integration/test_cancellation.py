"""Whoever is cancelled while they talk to Redis ends, at whatever moment that is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import cast

import pytest
from support.serving import SOON_S

from corral import Client, Job
from corral.connection import connect

MOMENTS = 60
"""Turns of the event loop: more than connecting and a command take."""


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_command_that_is_cancelled_does_not_go_on(redis_url: str) -> None:
    redis = connect(redis_url)
    for moment in range(MOMENTS):
        command = asyncio.create_task(cast("Coroutine[None, None, bool]", redis.ping()))
        await turns(moment)
        if command.cancel():
            with pytest.raises(asyncio.CancelledError):
                await command
    await redis.aclose(close_connection_pool=True)


async def test_a_wait_for_a_result_ends_when_it_is_cancelled(client: Client) -> None:
    job = await client.submit(Job(argv=("true",)))
    for moment in range(MOMENTS):
        waiting = asyncio.create_task(job.result())
        await turns(moment)
        waiting.cancel()
        done, _ = await asyncio.wait([waiting], timeout=SOON_S)
        assert done == {waiting}
        assert waiting.cancelled()


async def test_a_client_can_be_closed_at_any_moment(redis_url: str) -> None:
    for moment in range(MOMENTS):
        client = Client(redis_url)
        job = await client.submit(Job(argv=("true",)))
        with pytest.raises(TimeoutError):
            await job.result(timeout=0)
        await turns(moment)
        async with asyncio.timeout(SOON_S):
            await client.aclose()
