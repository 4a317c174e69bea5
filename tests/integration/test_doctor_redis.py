"""What corral doctor makes of real Redis and Valkey servers."""

from __future__ import annotations

from urllib.parse import urlsplit

from arq.connections import ArqRedis
from support.older_redis import older

from corral_worker.doctor.finding import Finding
from corral_worker.doctor.redis_server import look_at_redis
from corral_worker.secret import Secret
from corral_worker.settings import Settings


async def found(url: str) -> dict[str, Finding]:
    return {each.name: each for each in await look_at_redis(Settings(redis_url=Secret(url)))}


async def test_a_server_that_will_do_is_told_with_what_it_lacks(
    redis_url: str, redis_client: ArqRedis
) -> None:
    findings = await found(redis_url)

    assert {name: each.status for name, each in findings.items()} == {
        "redis": "ok",
        "redis.version": "ok",
        "redis.role": "ok",
        "redis.memory": "ok",
        "redis.persistence": "warn",  # the tests' servers keep nothing
        "redis.clock": "ok",
        "redis.rights": "ok",
    }
    assert await redis_client.keys() == []


async def test_a_server_that_may_drop_jobs_is_found(redis_url: str, redis_client: ArqRedis) -> None:
    await redis_client.config_set("maxmemory", "100mb")
    await redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        findings = await found(redis_url)
    finally:
        await redis_client.config_set("maxmemory-policy", "noeviction")
        await redis_client.config_set("maxmemory", "0")

    assert findings["redis.memory"].status == "fail"


async def test_a_server_that_is_too_old_is_found(redis_url: str) -> None:
    async with older(redis_url) as url:
        findings = await found(url)

    assert findings["redis.version"].status == "fail"
    assert "Redis 7.0" in str(findings["redis.version"].remedy)


async def test_a_user_who_may_run_no_scripts_or_subscribe_to_nothing_is_found(
    redis_url: str, redis_client: ArqRedis
) -> None:
    socket = urlsplit(redis_url).path
    allowed = {
        "scriptless": ("+@all", "-eval", "~*", "&*"),
        "deaf": ("+@all", "~*", "resetchannels"),
        "keyless": ("+@all", "&*", "~other:*"),
    }
    try:
        findings = {}
        for name, rules in allowed.items():
            await redis_client.execute_command("ACL", "SETUSER", name, "on", ">pass", *rules)  # type: ignore[no-untyped-call]
            findings[name] = await found(f"unix://{name}@{socket}?password=pass")
    finally:
        await redis_client.execute_command("ACL", "DELUSER", *allowed)  # type: ignore[no-untyped-call]

    assert {name: each["redis.rights"].status for name, each in findings.items()} == dict.fromkeys(
        allowed, "fail"
    )


async def test_a_user_who_may_not_ask_for_more_than_jobs_take_is_told_so(
    redis_url: str, redis_client: ArqRedis
) -> None:
    socket = urlsplit(redis_url).path
    rules = ("+@all", "-info", "~*", "&*")
    await redis_client.execute_command("ACL", "SETUSER", "plain", "on", ">pass", *rules)  # type: ignore[no-untyped-call]
    try:
        findings = await found(f"unix://plain@{socket}?password=pass")
    finally:
        await redis_client.execute_command("ACL", "DELUSER", "plain")  # type: ignore[no-untyped-call]

    assert findings["redis.version"].status == "warn"
    assert findings["redis.rights"].status == "ok"


async def test_a_server_that_is_not_there_or_lets_nobody_in_is_found_without_its_password(
    redis_url: str,
) -> None:
    socket = urlsplit(redis_url).path

    absent = await found("redis://:hunter2@127.0.0.1:1/0")
    closed = await found(f"unix://nobody@{socket}?password=hunter2")

    for findings in (absent, closed):
        assert findings["redis"].status == "fail"
        assert "hunter2" not in str(findings)
    assert "does not let us in" in closed["redis"].seen
