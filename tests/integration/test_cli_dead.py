"""``corral dead`` on real servers."""

from __future__ import annotations

import json
import time

import anyio
import pytest
from arq.connections import ArqRedis
from support.commands import ok, refused, told
from support.serving import SOON_S, Serving, Watched, serving, until

from corral import (
    Client,
    ErrWorkerLost,
    Job,
    JobStatus,
    Outcome,
    SubmittedJob,
    keys,
)
from corral_worker.queue.claims import Claims

pytestmark = pytest.mark.usefixtures("commands_know_redis")

ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))
SECRET = Job(
    argv=("python3", "-c", "print('argument-secret')"),
    env={"TOKEN": "env-secret"},
    stdin=b"stdin-secret",
)


async def given_up(client: Client, redis: ArqRedis, job: Job = SECRET) -> SubmittedJob:
    """Return a job that two workers went away with, as the third one found it."""
    submitted = await client.submit(job, tenant="acme")
    for _ in range(3):
        claims = Claims(redis, worker="lost", lease_s=0.001, most_lost=9)
        batch = await claims.take(1)
        assert [claim.job_id for claim in batch.claims] == [submitted.id]
        await anyio.sleep(0.01)
    async with serving(redis, Watched()):
        with pytest.raises(ErrWorkerLost):
            await submitted.result(timeout=SOON_S)
    return submitted


async def test_a_dead_letter_is_listed_and_shown_without_its_data(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await given_up(client, redis_client)

    (listed,) = json.loads(await ok("dead", "list", "--json"))
    assert (listed["job_id"], listed["tenant"], listed["why"]) == (job.id, "acme", "lost_leases")
    assert (listed["lost_leases"], listed["starts"]) == (3, 0)
    assert job.id in await ok("dead", "list")

    shown = await told("dead", "show", job.id)
    assert shown["job"] == {
        "program": "python3",
        "arguments": 2,
        "image": "python",
        "env_variables": 1,
        "stdin_bytes": 12,
        "attempts": 1,
    }
    for text in (json.dumps(shown), await ok("dead", "show", job.id)):
        assert "python3" in text
        assert "secret" not in text
        assert "TOKEN" not in text
    assert (await job.explain()).dead_letter
    await redis_client.delete(keys.result(job.id))
    assert f"corral dead show {job.id}" in await ok("jobs", "show", job.id)


async def test_a_dead_letter_is_retried_as_if_it_had_never_been_tried(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    job = await given_up(client, redis_client)

    assert await ok("dead", "retry", job.id) == f"{job.id} is on its queue again\n"

    found = await job.explain()
    assert (found.status, found.lost_leases, found.dead_letter) == (JobStatus.QUEUED, 0, False)
    assert await redis_client.ttl(keys.job(job.id)) == -1, "it may wait for as long as it takes"
    assert json.loads(await ok("dead", "list", "--json")) == []
    assert "job_not_found" in await refused("dead", "retry", job.id)
    async with served(slots=8):
        assert (await job.result(timeout=SOON_S)).ok
    assert not await redis_client.exists(
        keys.dead(job.id), keys.death(job.id), keys.state(job.id), keys.job(job.id)
    )


async def test_a_retried_dead_letter_wakes_a_worker_that_runs(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    job = await given_up(client, redis_client)
    async with served(slots=8):
        await anyio.sleep(0.1)
        await ok("dead", "retry", job.id)
        assert (await job.result(timeout=SOON_S)).ok


async def test_a_retried_dead_letter_has_its_whole_time_to_start_and_expires_then(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    hour = Job(argv=("true",), start_within_s=3600)
    job = await given_up(client, redis_client, hour)
    before = time.time()
    await ok("dead", "retry", job.id)

    deadline = await redis_client.zscore(keys.DEADLINES, job.id)
    assert deadline is not None
    assert before + 3500 < deadline / 1000 < time.time() + 3700
    await ok("tenants", "set", "acme", "--suspend")
    await redis_client.zadd(keys.DEADLINES, {job.id: 1})
    async with served(slots=8):
        assert (await job.result(timeout=SOON_S)).outcome is Outcome.EXPIRED


async def test_a_dead_letter_is_dropped_for_good(client: Client, redis_client: ArqRedis) -> None:
    job = await given_up(client, redis_client)

    assert await ok("dead", "drop", job.id) == f"dropped {job.id}\n"

    assert not await redis_client.exists(keys.DEAD, keys.dead(job.id), keys.death(job.id))
    assert "job_not_found" in await refused("dead", "drop", job.id)
    assert "job_not_found" in await refused("dead", "show", job.id)


async def test_what_is_no_job_is_a_dead_letter_that_says_so(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    await redis_client.set(keys.job("acme:poison"), b"\x80\x04garbage")
    await redis_client.zadd(keys.queue("acme"), {"acme:poison": 1})
    await client.submit(ECHO, tenant="acme")
    async with served(slots=8):

        async def is_listed() -> bool:
            return bool(await redis_client.zcard(keys.DEAD))

        await until(is_listed)

    shown = await told("dead", "show", "acme:poison")
    assert shown["why"] == "invalid_job"
    assert "pickle" in str(shown["job_error"])


async def test_a_retry_never_overwrites_another_job_nor_invents_one(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await given_up(client, redis_client)
    await redis_client.set(keys.job(job.id), b"another")
    assert "retry_refused: another job" in await refused("dead", "retry", job.id)

    await redis_client.delete(keys.job(job.id), keys.dead(job.id))
    assert "retry_refused" in await refused("dead", "retry", job.id)
    assert (await told("dead", "show", job.id))["payload_bytes"] == 0
