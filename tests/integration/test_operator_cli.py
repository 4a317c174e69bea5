"""The operators' commands on real servers, and what they change while a worker runs."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import anyio
import pytest
from anyio.to_thread import run_sync
from arq.connections import ArqRedis
from click.testing import CliRunner
from click.testing import Result as Invoked

from corral import (
    Client,
    ErrJobNotFound,
    ErrPolicyUnusable,
    ErrQuotaExceeded,
    ErrSecurityViolation,
    ErrWorkerLost,
    Job,
    JobStatus,
    Limits,
    Outcome,
    Policy,
    Result,
    SubmittedJob,
    WaitsFor,
    keys,
)
from corral_worker.cli.root import corral
from corral_worker.executor.executor import Attempt
from corral_worker.executor.null import NullExecutor
from corral_worker.queue.claims import Claims
from corral_worker.queue.consumer import Consumer
from corral_worker.sandbox.stop import Stop

ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))
SECRET = Job(
    argv=("python3", "-c", "print('argument-secret')"),
    env={"TOKEN": "env-secret"},
    stdin=b"stdin-secret",
)


class Guarding(NullExecutor):
    """Has the policy that a worker without settings of its own has."""

    def __init__(self) -> None:
        self.running = 0

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        Policy().narrowed(attempt.narrowing).enforce(attempt.job)
        self.running += 1
        try:
            return await super().execute(attempt, stop)
        finally:
            self.running -= 1


@asynccontextmanager
async def serving(redis: ArqRedis, *, slots: int = 8) -> AsyncIterator[Guarding]:
    executor = Guarding()
    async with anyio.create_task_group() as tasks:
        consumer = Consumer(redis=redis, executor=executor, tenants=(), slots=slots)
        tasks.start_soon(consumer.run)
        try:
            yield executor
        finally:
            tasks.cancel_scope.cancel()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with Client(redis_url) as client:
        yield client


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setenv("CORRAL_REDIS_URL", redis_url)


async def invoke(*args: str) -> Invoked:
    # A command has an event loop of its own.
    return await run_sync(partial(CliRunner().invoke, corral, args, prog_name="corral"))


async def ok(*args: str) -> str:
    invoked = await invoke(*args)
    assert (invoked.exit_code, invoked.stderr) == (0, "")
    return invoked.stdout


async def told(*args: str) -> dict[str, object]:
    shown: dict[str, object] = json.loads(await ok(*args, "--json"))
    return shown


async def refused(*args: str) -> str:
    invoked = await invoke(*args)
    assert (invoked.exit_code, invoked.stdout) == (1, "")
    return invoked.stderr


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(10):
        while not await condition():
            await anyio.sleep(0.01)


async def is_running(job: SubmittedJob) -> None:
    async def begun() -> bool:
        return (await job.explain()).begun

    await until(begun)


# Tenants.


async def test_settings_are_set_shown_and_unset(redis_client: ArqRedis, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('env_denied = ["AWS_*"]\n[ceilings]\nwall_s = 5\n')
    options = ("--weight", "2.5", "--concurrency", "3", "--depth", "9", "--payload", "64K")
    await ok("tenants", "set", "acme", *options, "--suspend", "--policy", str(policy))

    assert await redis_client.hgetall(keys.tenant_settings("acme")) == {  # type: ignore[misc]
        b"known": b"1",
        b"weight": b"2.5",
        b"concurrency": b"3",
        b"depth": b"9",
        b"payload_bytes": b"65536",
        b"suspended": b"1",
        b"policy": b'{"networks":null,"env_denied":["AWS_*"],"ceilings":{"wall_s":5.0}}',
    }

    unset = ("--unset", "weight", "--unset", "policy", "--unset", "suspended", "--unset", "payload")
    await ok("tenants", "set", "acme", *unset)
    shown = await told("tenants", "show", "acme")
    assert shown["own"] == {
        "weight": None,
        "concurrency": 3,
        "depth": 9,
        "payload_bytes": None,
        "suspended": None,
        "policy": None,
    }
    assert shown["holds"] == {
        "weight": 1,
        "concurrency": 3,
        "depth": 9,
        "payload_bytes": 0,
        "suspended": False,
    }

    assert await ok("tenants", "remove", "acme") == "removed the settings of acme\n"
    assert not await redis_client.exists(keys.tenant_settings("acme"))
    assert "tenant_not_found" in await refused("tenants", "remove", "acme")


async def test_an_unknown_tenant_is_told_so_until_it_submits(client: Client) -> None:
    assert "tenant_not_found: there is no tenant blue" in await refused("tenants", "show", "blue")

    await client.submit(ECHO, tenant="blue")

    shown = await told("tenants", "show", "blue")
    assert (shown["known"], shown["may_submit"], shown["waiting"]) == (False, True, 1)


async def test_a_policy_that_cannot_be_read_is_shown_as_such(redis_client: ArqRedis) -> None:
    await ok("tenants", "set", "acme")
    await cast(
        "Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), "policy", '{"x":1}')
    )

    assert "all its jobs are refused" in await ok("tenants", "show", "acme")
    assert (await told("tenants", "show", "acme"))["policy_error"] is not None


async def test_a_refused_setting_changes_nothing(redis_client: ArqRedis) -> None:
    said = await refused("tenants", "set", "acme", "--weight", "2", "--depth", "-1")

    assert said.startswith("corral: invalid_setting: depth: ")
    assert not await redis_client.exists(keys.tenant_settings("acme"), keys.TENANTS)


async def test_a_list_is_bounded_and_says_that_there_is_more(redis_client: ArqRedis) -> None:
    names = [f"t{number:04}" for number in range(500)]
    await cast("Awaitable[int]", redis_client.sadd(keys.TENANTS, *names))

    some = await invoke("tenants", "list", "--limit", "7", "--json")
    every = json.loads(await ok("tenants", "list", "--limit", "500", "--json"))

    assert len(json.loads(some.stdout)) == 7
    assert some.stderr == "corral: there are more than these 7: see --limit\n"
    assert [state["tenant"] for state in every] == names
    assert "t0007" in await ok("tenants", "list", "--limit", "500")


async def test_the_door_is_closed_and_opened_to_unknown_tenants(client: Client) -> None:
    assert "open" in await ok("tenants", "default")
    await ok("tenants", "default", "--closed")
    await ok("tenants", "set", "acme")

    await client.submit(ECHO, tenant="acme")
    with pytest.raises(ErrQuotaExceeded, match="blue is not known"):
        await client.submit(ECHO, tenant="blue")
    await ok("tenants", "default", "--open")
    await client.submit(ECHO, tenant="blue")


async def test_defaults_hold_for_tenants_that_have_set_nothing_else(client: Client) -> None:
    await ok("tenants", "default", "--depth", "1", "--weight", "3")
    await ok("tenants", "set", "acme", "--weight", "2")

    shown = cast("dict[str, object]", (await told("tenants", "show", "acme"))["holds"])
    assert (shown["weight"], shown["depth"]) == (2, 1)
    await client.submit(ECHO, tenant="acme")
    with pytest.raises(ErrQuotaExceeded):
        await client.submit(ECHO, tenant="acme")
    await ok("tenants", "default", "--unset", "depth")
    await client.submit(ECHO, tenant="acme")


# Changes while a worker runs.


async def test_a_cap_is_raised_and_lowered_while_jobs_run(
    client: Client, redis_client: ArqRedis
) -> None:
    await ok("tenants", "set", "acme", "--concurrency", "1")
    async with serving(redis_client) as executor:
        await client.submit_many([SLEEP] * 6, tenant="acme")

        async def runs(count: int) -> bool:
            return executor.running == count

        await until(lambda: runs(1))
        began = time.monotonic()
        await ok("tenants", "set", "acme", "--concurrency", "3")
        await until(lambda: runs(3))
        assert time.monotonic() - began < 1.0

        await ok("tenants", "set", "acme", "--concurrency", "1")
        last = await client.submit(ECHO, tenant="acme")
        found = await last.explain()
        assert (found.tenant_running, found.tenant_concurrency) == (3, 1)
        assert WaitsFor.CONCURRENCY in found.waits_for

        await ok("tenants", "set", "acme", "--unset", "concurrency")
        assert (await last.result(timeout=5)).ok


async def test_a_tenant_is_suspended_and_resumed_while_a_worker_runs(
    client: Client, redis_client: ArqRedis
) -> None:
    async with serving(redis_client):
        await (await client.submit(ECHO, tenant="acme")).result(timeout=5)
        await ok("tenants", "set", "acme", "--suspend")
        job = await client.submit(ECHO, tenant="acme")
        with pytest.raises(TimeoutError):
            await job.result(timeout=0.3)
        assert (await job.explain()).waits_for == (WaitsFor.RESUMPTION,)

        began = time.monotonic()
        await ok("tenants", "set", "acme", "--resume")
        assert (await job.result(timeout=5)).ok
        assert time.monotonic() - began < 1.0


async def test_all_tenants_but_one_are_suspended_by_default(
    client: Client, redis_client: ArqRedis
) -> None:
    await ok("tenants", "default", "--suspend")
    await ok("tenants", "set", "acme", "--resume")
    async with serving(redis_client):
        waits = await client.submit(ECHO, tenant="blue")
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=5)).ok
        assert await waits.status() is JobStatus.QUEUED

        await ok("tenants", "default", "--resume")
        assert (await waits.result(timeout=5)).ok


async def test_a_policy_holds_for_the_next_job_and_for_its_tenant_alone(
    client: Client, redis_client: ArqRedis, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"ceilings": {"wall_s": 5}}')
    long = Job(argv=("echo",), limits=Limits(wall_s=10))
    async with serving(redis_client):
        assert (await (await client.submit(long, tenant="acme")).result(timeout=5)).ok

        await ok("tenants", "set", "acme", "--policy", str(policy))
        with pytest.raises(ErrSecurityViolation) as caught:
            await (await client.submit(long, tenant="acme")).result(timeout=5)
        assert [violation.field for violation in caught.value.violations] == ["$.limits.wall_s"]
        assert (await (await client.submit(long, tenant="blue")).result(timeout=5)).ok

        await ok("tenants", "set", "acme", "--unset", "policy")
        assert (await (await client.submit(long, tenant="acme")).result(timeout=5)).ok


async def test_a_policy_never_widens_what_the_worker_allows(
    client: Client, redis_client: ArqRedis
) -> None:
    stored = '{"networks":["none","host","sandbox"],"ceilings":{"wall_s":600000}}'
    await cast("Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), "policy", stored))
    async with serving(redis_client):
        for job in (
            Job(argv=("echo",), limits=Limits(wall_s=500_000)),
            Job(argv=("echo",), network="sandbox"),
        ):
            with pytest.raises(ErrSecurityViolation):
                await (await client.submit(job, tenant="acme")).result(timeout=5)


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param("{", id="malformed"),
        pytest.param('{"ceiling":{}}', id="unknown field"),
        pytest.param('{"ceilings":{}}' + " " * 70_000, id="too large"),
    ],
)
async def test_a_policy_that_cannot_be_read_refuses_the_tenants_jobs_and_no_others(
    client: Client, redis_client: ArqRedis, stored: str
) -> None:
    await cast("Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), "policy", stored))
    async with serving(redis_client):
        job = await client.submit(ECHO, tenant="acme")
        with pytest.raises(ErrPolicyUnusable) as caught:
            await job.result(timeout=5)
        assert caught.value.retryable
        assert (await job.explain()).error == "policy_unusable"
        assert (await (await client.submit(ECHO, tenant="blue")).result(timeout=5)).ok

        await ok("tenants", "set", "acme", "--unset", "policy")
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=5)).ok


# Dead letters.


async def given_up(client: Client, redis: ArqRedis, job: Job = SECRET) -> SubmittedJob:
    """Return a job that two workers went away with, as the third one found it."""
    submitted = await client.submit(job, tenant="acme")
    for _ in range(3):
        claims = Claims(redis, worker="lost", lease_s=0.001, most_lost=9)
        batch = await claims.take(1)
        assert [claim.job_id for claim in batch.claims] == [submitted.id]
        await anyio.sleep(0.01)
    async with serving(redis):
        with pytest.raises(ErrWorkerLost):
            await submitted.result(timeout=5)
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
    client: Client, redis_client: ArqRedis
) -> None:
    job = await given_up(client, redis_client)

    assert await ok("dead", "retry", job.id) == f"{job.id} is on its queue again\n"

    found = await job.explain()
    assert (found.status, found.lost_leases, found.dead_letter) == (JobStatus.QUEUED, 0, False)
    assert await redis_client.ttl(keys.job(job.id)) > 3600
    assert json.loads(await ok("dead", "list", "--json")) == []
    assert "job_not_found" in await refused("dead", "retry", job.id)
    async with serving(redis_client):
        assert (await job.result(timeout=5)).ok
    assert not await redis_client.exists(
        keys.dead(job.id), keys.death(job.id), keys.state(job.id), keys.job(job.id)
    )


async def test_a_retried_dead_letter_wakes_a_worker_that_runs(
    client: Client, redis_client: ArqRedis
) -> None:
    job = await given_up(client, redis_client)
    async with serving(redis_client):
        await anyio.sleep(0.1)
        await ok("dead", "retry", job.id)
        assert (await job.result(timeout=1)).ok


async def test_a_dead_letter_is_dropped_for_good(client: Client, redis_client: ArqRedis) -> None:
    job = await given_up(client, redis_client)

    assert await ok("dead", "drop", job.id) == f"dropped {job.id}\n"

    assert not await redis_client.exists(keys.DEAD, keys.dead(job.id), keys.death(job.id))
    assert "job_not_found" in await refused("dead", "drop", job.id)
    assert "job_not_found" in await refused("dead", "show", job.id)


async def test_what_is_no_job_is_a_dead_letter_that_says_so(
    client: Client, redis_client: ArqRedis
) -> None:
    await redis_client.set(keys.job("acme:poison"), b"\x80\x04garbage")
    await redis_client.zadd(keys.queue("acme"), {"acme:poison": 1})
    await client.submit(ECHO, tenant="acme")
    async with serving(redis_client):

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


# Jobs.


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


async def test_a_delayed_job_says_until_when(client: Client, redis_client: ArqRedis) -> None:
    async with serving(redis_client):
        running = await client.submit(SLEEP, tenant="acme")
        await is_running(running)
        job = await client.submit(ECHO, tenant="acme", delay_s=60)
        shown = await told("jobs", "show", job.id)

        assert (shown["status"], shown["waits_for"]) == ("deferred", ["start_time"])
        assert "delayed until 20" in await ok("jobs", "show", job.id)


async def test_a_running_job_says_where_and_its_tenants_next_that_slots_are_taken(
    client: Client, redis_client: ArqRedis
) -> None:
    async with serving(redis_client, slots=1):
        running = await client.submit(SLEEP, tenant="acme")
        await is_running(running)
        queued = await client.submit(ECHO, tenant="acme")

        found = await running.explain()
        assert (found.status, found.attempt) == (JobStatus.RUNNING, 1)
        assert found.worker is not None
        assert 0 < (found.lease_ends_in_s or 0) <= 10
        assert f"running on worker {found.worker} since 20" in await ok("jobs", "show", running.id)
        assert (await queued.explain()).waits_for == (WaitsFor.SLOT,)


async def test_a_cap_is_told_with_how_many_run(client: Client, redis_client: ArqRedis) -> None:
    await ok("tenants", "set", "acme", "--concurrency", "1")
    async with serving(redis_client):
        await is_running(await client.submit(SLEEP, tenant="acme"))
        job = await client.submit(ECHO, tenant="acme")

        assert "at its concurrency cap (1 running)" in await ok("jobs", "show", job.id)


async def test_a_finished_job_says_how_it_ended_and_an_unknown_one_is_told_so(
    client: Client, redis_client: ArqRedis
) -> None:
    async with serving(redis_client):
        job = await client.submit(ECHO, tenant="acme")
        await job.result(timeout=5)
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


async def test_jobs_are_cancelled(client: Client, redis_client: ArqRedis) -> None:
    queued = await client.submit(ECHO, tenant="acme", delay_s=60)
    assert await ok("jobs", "cancel", queued.id) == f"{queued.id} is cancelled\n"
    assert (await queued.result(timeout=1)).outcome is Outcome.CANCELLED

    async with serving(redis_client):
        running = await client.submit(SLEEP, tenant="acme")
        await is_running(running)
        assert await ok("jobs", "cancel", running.id) == f"{running.id} is cancelled\n"
        done = await client.submit(ECHO, tenant="acme")
        await done.result(timeout=5)
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
