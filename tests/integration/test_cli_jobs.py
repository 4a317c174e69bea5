"""``corral jobs`` on real servers."""

from __future__ import annotations

import anyio
import pytest
from arq.connections import ArqRedis
from support.commands import ok, refused, told
from support.serving import SOON_S, Serving, until

from corral import (
    Client,
    ErrJobNotFound,
    Job,
    JobStatus,
    Outcome,
    SubmittedJob,
    WaitsFor,
    keys,
)
from corral_worker.queue.claims import Claims

pytestmark = pytest.mark.usefixtures("commands_know_redis")

ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))


async def is_running(job: SubmittedJob) -> None:
    async def begun() -> bool:
        return (await job.explain()).begun

    await until(begun)


async def test_a_job_waits_for_a_worker_and_for_those_before_it(client: Client) -> None:
    submitted = await client.submit_many([ECHO] * 3, tenant="acme")
    # Those of one millisecond go by their ids.
    first, second, third = sorted(submitted, key=lambda job: job.id)

    assert (await first.explain()).waits_for == (WaitsFor.WORKER,)
    found = await third.explain()
    assert (found.waits_for, found.jobs_ahead) == ((WaitsFor.WORKER, WaitsFor.EARLIER_JOBS), 2)
    assert await ok("jobs", "show", second.id) == (
        f"{second.id}  queued\n  no worker is alive\n  behind 1 job(s) of its tenant\n"
    )


async def test_a_delayed_job_says_until_when(client: Client, served: Serving) -> None:
    async with served(slots=8):
        running = await client.submit(SLEEP, tenant="acme")
        await is_running(running)
        job = await client.submit(ECHO, tenant="acme", delay_s=60)
        shown = await told("jobs", "show", job.id)

        assert (shown["status"], shown["waits_for"]) == ("deferred", ["start_time"])
        assert "delayed until 20" in await ok("jobs", "show", job.id)


async def test_a_running_job_says_where_and_its_tenants_next_that_slots_are_taken(
    client: Client, served: Serving
) -> None:
    async with served(slots=1):
        running = await client.submit(SLEEP, tenant="acme")
        await is_running(running)
        queued = await client.submit(ECHO, tenant="acme")

        found = await running.explain()
        assert (found.status, found.attempt) == (JobStatus.RUNNING, 1)
        assert found.worker is not None
        assert 0 < (found.lease_ends_in_s or 0) <= 10
        assert f"running on worker {found.worker} since 20" in await ok("jobs", "show", running.id)
        assert (await queued.explain()).waits_for == (WaitsFor.SLOT,)


async def test_a_cap_is_told_with_how_many_run(client: Client, served: Serving) -> None:
    await ok("tenants", "set", "acme", "--concurrency", "1")
    async with served(slots=8):
        await is_running(await client.submit(SLEEP, tenant="acme"))
        job = await client.submit(ECHO, tenant="acme")

        assert "at its concurrency cap (1 running)" in await ok("jobs", "show", job.id)


async def test_a_finished_job_says_how_it_ended_and_an_unknown_one_is_told_so(
    client: Client, served: Serving
) -> None:
    async with served(slots=8):
        job = await client.submit(ECHO, tenant="acme")
        await job.result(timeout=SOON_S)
        assert await ok("jobs", "show", job.id) == f"{job.id}  finished\n  outcome: exited\n"

    with pytest.raises(ErrJobNotFound):
        await client.job("acme:nobody").explain()
    assert "job_not_found" in await refused("jobs", "show", "acme:nobody")
    assert "invalid_job" in await refused("jobs", "show", "nobody")


async def test_a_job_that_lost_its_worker_says_so(client: Client, redis_client: ArqRedis) -> None:
    job = await client.submit(ECHO, tenant="acme")
    claims = Claims(redis_client, worker="lost", lease_s=0.001, most_lost=9)
    for _ in range(2):
        await claims.take(1)
        await anyio.sleep(0.01)

    assert (await job.explain()).lost_leases == 1


async def test_a_job_of_a_stock_worker_is_told_as_such(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    await redis_client.set(keys.in_progress(job.id), b"1", px=5000)

    assert "held by a worker of stock arq" in await ok("jobs", "show", job.id)


async def test_a_job_with_an_id_of_stock_arq_is_shown_and_cancelled_by_its_tenants_name(
    redis_client: ArqRedis,
) -> None:
    pool = redis_client
    enqueued = await pool.enqueue_job("execute", ECHO, _queue_name=keys.queue("acme"))
    assert enqueued is not None
    stock_id = enqueued.job_id

    assert "invalid_job" in await refused("jobs", "show", stock_id)
    shown = await told("jobs", "show", stock_id, "--tenant", "acme")
    assert (shown["job_id"], shown["tenant"], shown["status"]) == (stock_id, "acme", "queued")
    assert "job_not_found" in await refused("jobs", "show", stock_id, "--tenant", "blue")

    cancelled = await ok("jobs", "cancel", stock_id, "--tenant", "acme")
    assert cancelled == f"{stock_id} is cancelled\n"
    shown = await told("jobs", "show", stock_id, "--tenant", "acme")
    assert (shown["status"], shown["outcome"]) == ("finished", "cancelled")


async def test_a_tenants_name_opens_no_other_tenants_jobs(client: Client) -> None:
    job = await client.submit(ECHO, tenant="acme")

    assert "invalid_job" in await refused("jobs", "cancel", job.id, "--tenant", "blue")
    assert await job.status() is JobStatus.QUEUED
    assert (await told("jobs", "show", job.id, "--tenant", "acme"))["status"] == "queued"


async def test_jobs_are_cancelled(client: Client, served: Serving) -> None:
    queued = await client.submit(ECHO, tenant="acme", delay_s=60)
    assert await ok("jobs", "cancel", queued.id) == f"{queued.id} is cancelled\n"
    assert (await queued.result(timeout=SOON_S)).outcome is Outcome.CANCELLED

    async with served(slots=8):
        running = await client.submit(SLEEP, tenant="acme")
        await is_running(running)
        assert await ok("jobs", "cancel", running.id) == f"{running.id} is cancelled\n"
        done = await client.submit(ECHO, tenant="acme")
        await done.result(timeout=SOON_S)
        assert await ok("jobs", "cancel", done.id) == f"{done.id} had ended by itself\n"
    assert "job_not_found" in await refused("jobs", "cancel", "acme:nobody")


async def test_a_cancel_that_nobody_confirms_says_that_it_stands(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await client.submit(ECHO, tenant="acme")
    await Claims(redis_client, worker="frozen", lease_s=30, most_lost=3).take(1)

    assert "the request stands" in await refused("jobs", "cancel", job.id, "--wait", "0.2")
    assert (await job.explain()).cancel_requested


async def test_an_explanation_changes_nothing(client: Client, redis_client: ArqRedis) -> None:
    job = await client.submit(ECHO, tenant="acme")

    async def content() -> dict[bytes, bytes]:
        return {key: await redis_client.dump(key) for key in await redis_client.keys()}

    before = await content()
    await job.explain()
    await ok("tenants", "show", "acme")
    await ok("tenants", "list")
    assert before == await content()
