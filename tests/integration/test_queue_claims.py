"""Claims whose replies are lost on their way, and are asked for again."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import cast

import anyio
import pytest
from arq.connections import ArqRedis
from support.serving import SOON_S

from corral import Client, Job, keys
from corral.scripts import Script
from corral_worker.queue.claims import Claims

ECHO = Job(argv=("echo", "hello"))
LEASE_S = 60


@pytest.fixture
def claims(redis_client: ArqRedis) -> Claims:
    return Claims(redis_client, worker="one", lease_s=LEASE_S, most_lost=3)


async def test_a_claim_whose_reply_was_lost_is_claimed_again_at_once(
    client: Client, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    await _lose_a_reply(claims, monkeypatch)

    (again,) = (await claims.take(4)).claims

    assert (again.job_id, again.lost) == (job.id, 0)


async def test_the_leases_of_a_claim_that_is_asked_for_again_begin_anew(
    client: Client, redis_client: ArqRedis, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    await _lose_a_reply(claims, monkeypatch)
    first = await _ends(redis_client, job.id)
    with anyio.fail_after(SOON_S):
        while await _now_ms(redis_client) + LEASE_S * 1000 <= max(first):
            await anyio.sleep(0.001)

    assert len((await claims.take(4)).claims) == 1

    assert min(await _ends(redis_client, job.id)) > max(first)


async def test_a_job_that_is_another_workers_by_now_is_not_handed_out_again(
    client: Client, redis_client: ArqRedis, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, kept = await client.submit_many([ECHO] * 2, tenant="acme")
    await _lose_a_reply(claims, monkeypatch)
    await redis_client.set(keys.in_progress(lost.id), "another's", px=LEASE_S * 500)
    score = await redis_client.zscore(keys.queue("acme"), lost.id)

    assert [claim.job_id for claim in (await claims.take(4)).claims] == [kept.id]

    assert await redis_client.pttl(keys.in_progress(lost.id)) <= LEASE_S * 500
    assert await redis_client.zscore(keys.queue("acme"), lost.id) == score


async def _lose_a_reply(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Script.run

    async def lose_the_reply(self: Script, *arguments: object) -> object:
        await real(self, *arguments)  # type: ignore[arg-type]
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(Script, "run", lose_the_reply)
        with pytest.raises(ConnectionResetError):
            await claims.take(4)


async def _ends(redis: ArqRedis, job_id: str) -> list[int]:
    """When a lease of the worker ``one`` ends, in ms, in all the places that say so."""
    tenant = keys.tenant_of(job_id)
    scores = [await redis.zscore(key, job_id) for key in (keys.queue(tenant), keys.running(tenant))]
    expiries = [
        await cast("Awaitable[int]", redis.pexpiretime(key))
        for key in (keys.in_progress(job_id), keys.for_lua()["claim"] + "one")
    ]
    return [*(int(score or 0) for score in scores), *expiries]


async def _now_ms(redis: ArqRedis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000
