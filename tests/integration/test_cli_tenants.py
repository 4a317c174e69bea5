"""``corral tenants`` on real servers, and what it changes while a worker runs."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from pathlib import Path
from typing import cast

import pytest
from arq.connections import ArqRedis
from support.commands import invoke, ok, refused, told
from support.serving import SOON_S, Serving, Watched, until

from corral import (
    Client,
    ErrPolicyUnusable,
    ErrQuotaExceeded,
    ErrSecurityViolation,
    Job,
    JobStatus,
    Limits,
    WaitsFor,
    keys,
)

pytestmark = pytest.mark.usefixtures("commands_know_redis")

ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))


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
    client: Client, served: Serving, executor: Watched
) -> None:
    await ok("tenants", "set", "acme", "--concurrency", "1")
    async with served(slots=8):
        await client.submit_many([SLEEP] * 6, tenant="acme")

        async def runs(count: int) -> bool:
            return executor.running == count

        await until(lambda: runs(1))
        await ok("tenants", "set", "acme", "--concurrency", "3")
        await until(lambda: runs(3))

        await ok("tenants", "set", "acme", "--concurrency", "1")
        last = await client.submit(ECHO, tenant="acme")
        found = await last.explain()
        assert (found.tenant_running, found.tenant_concurrency) == (3, 1)
        assert WaitsFor.CONCURRENCY in found.waits_for

        await ok("tenants", "set", "acme", "--unset", "concurrency")
        assert (await last.result(timeout=SOON_S)).ok


async def test_a_tenant_is_suspended_and_resumed_while_a_worker_runs(
    client: Client, served: Serving
) -> None:
    async with served(slots=8):
        await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)
        await ok("tenants", "set", "acme", "--suspend")
        job = await client.submit(ECHO, tenant="acme")
        with pytest.raises(TimeoutError):
            await job.result(timeout=0.3)
        assert (await job.explain()).waits_for == (WaitsFor.RESUMPTION,)

        await ok("tenants", "set", "acme", "--resume")
        assert (await job.result(timeout=SOON_S)).ok


async def test_settings_that_were_changed_by_hand_are_found(
    client: Client, redis_client: ArqRedis, served: Serving, executor: Watched
) -> None:
    async def by_hand(name: str, value: int) -> None:
        key = keys.tenant_settings("acme")
        await cast("Awaitable[int]", redis_client.hset(key, name, str(value)))

    await by_hand("concurrency", 1)
    async with served(slots=8):
        await client.submit_many([SLEEP] * 2, tenant="acme")

        async def runs(count: int) -> bool:
            return executor.running == count

        await until(lambda: runs(1))
        await by_hand("concurrency", 2)
        await until(lambda: runs(2))

        await by_hand("concurrency", 0)
        await by_hand("suspended", 1)
        job = await client.submit(ECHO, tenant="acme")
        assert (await job.explain()).waits_for == (WaitsFor.RESUMPTION,)
        await by_hand("suspended", 0)
        assert (await job.result(timeout=SOON_S)).ok


async def test_all_tenants_but_one_are_suspended_by_default(
    client: Client, served: Serving
) -> None:
    await ok("tenants", "default", "--suspend")
    await ok("tenants", "set", "acme", "--resume")
    async with served(slots=8):
        waits = await client.submit(ECHO, tenant="blue")
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok
        assert await waits.status() is JobStatus.QUEUED

        await ok("tenants", "default", "--resume")
        assert (await waits.result(timeout=SOON_S)).ok


async def test_a_policy_holds_for_the_next_job_and_for_its_tenant_alone(
    client: Client, tmp_path: Path, served: Serving
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"ceilings": {"wall_s": 5}}')
    long = Job(argv=("echo",), limits=Limits(wall_s=10))
    async with served(slots=8):
        assert (await (await client.submit(long, tenant="acme")).result(timeout=SOON_S)).ok

        await ok("tenants", "set", "acme", "--policy", str(policy))
        with pytest.raises(ErrSecurityViolation) as caught:
            await (await client.submit(long, tenant="acme")).result(timeout=SOON_S)
        assert [violation.field for violation in caught.value.violations] == ["$.limits.wall_s"]
        assert (await (await client.submit(long, tenant="blue")).result(timeout=SOON_S)).ok

        await ok("tenants", "set", "acme", "--unset", "policy")
        assert (await (await client.submit(long, tenant="acme")).result(timeout=SOON_S)).ok


async def test_a_policy_never_widens_what_the_worker_allows(
    client: Client, redis_client: ArqRedis, served: Serving
) -> None:
    stored = '{"networks":["none","host","sandbox"],"ceilings":{"wall_s":600000}}'
    await cast("Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), "policy", stored))
    async with served(slots=8):
        for job in (
            Job(argv=("echo",), limits=Limits(wall_s=500_000)),
            Job(argv=("echo",), network="sandbox"),
        ):
            with pytest.raises(ErrSecurityViolation):
                await (await client.submit(job, tenant="acme")).result(timeout=SOON_S)


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param("{", id="malformed"),
        pytest.param('{"ceiling":{}}', id="unknown field"),
        pytest.param('{"ceilings":{}}' + " " * 70_000, id="too large"),
    ],
)
async def test_a_policy_that_cannot_be_read_refuses_the_tenants_jobs_and_no_others(
    client: Client, redis_client: ArqRedis, stored: str, served: Serving
) -> None:
    await cast("Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), "policy", stored))
    async with served(slots=8):
        job = await client.submit(ECHO, tenant="acme")
        with pytest.raises(ErrPolicyUnusable) as caught:
            await job.result(timeout=SOON_S)
        assert caught.value.retryable
        assert (await job.explain()).error == "policy_unusable"
        assert (await (await client.submit(ECHO, tenant="blue")).result(timeout=SOON_S)).ok

        await ok("tenants", "set", "acme", "--unset", "policy")
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok
