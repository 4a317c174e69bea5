"""Looks at the Redis or Valkey of the queues, and changes nothing in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping

import anyio
from arq.connections import ArqRedis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from corral import CorralError, keys
from corral.connection import connect, ping
from corral_worker.doctor.finding import Finding, fail, ok, warn
from corral_worker.queue.durability import is_too_old
from corral_worker.settings import Settings

_CLOSE_WITHIN_S = 5.0
_PINGS = 21
_SLOW_S = 0.01
_SKEW_S = 1.0
_KEEPS_ALL = "noeviction"
_ALLOW = "Allow the worker's user scripts, lists, streams, publish and subscribe: +@all ~* &*."
# Reads what the workers' scripts read. Nothing is ever put on the list of that name.
_SCRIPT = "return redis.call('EXISTS', ARGV[1])"


def not_configured() -> Finding:
    """Return the finding of a host whose settings name no Redis."""
    return warn(
        "redis",
        "not looked at: no Redis is configured",
        "Set CORRAL_REDIS_URL, or redis_url in the settings file: no worker starts without.",
    )


async def look_at_redis(settings: Settings) -> Iterable[Finding]:
    """Ask the server what it is and how it is set, and try what a worker needs of it."""
    redis = connect(settings.redis_url.reveal())
    try:
        await ping(redis)
        findings = [await _latency(redis), *await _information(redis), *await _rights(redis)]
    except CorralError as error:
        return (fail("redis", str(error), "Start Redis, or set CORRAL_REDIS_URL to where it is."),)
    finally:
        with anyio.move_on_after(_CLOSE_WITHIN_S, shield=True):
            await redis.aclose(close_connection_pool=True)
    return findings


def latency(round_trips_s: list[float]) -> Finding:
    """Judge how long pings took, in seconds."""
    middle, worst = statistics.median(round_trips_s), max(round_trips_s)
    seen = f"answers in {middle * 1000:.2f} ms (median), {worst * 1000:.2f} ms at most"
    if middle > _SLOW_S:
        return warn("redis", seen, "Put the workers nearer to Redis, or look for what slows it.")
    return ok("redis", seen)


def server(info: Mapping[str, object]) -> Iterator[Finding]:
    """Judge a server by what INFO says of it."""
    kind = "Valkey" if "valkey_version" in info else "Redis"
    told = str(info.get("valkey_version") or info.get("redis_version", "of no version"))
    if info.get("redis_mode") == "cluster":
        yield fail(
            "redis.version",
            f"{kind} {told}, a cluster",
            "Use one without cluster mode, or Sentinel.",
        )
    elif is_too_old(info):
        yield fail(
            "redis.version",
            f"{kind} {told}, which lacks commands that jobs take",
            "Install Redis 7.0 or later, or Valkey.",
        )
    else:
        yield ok("redis.version", f"{kind} {told}")
    if info.get("role") in {"slave", "replica"}:
        yield fail("redis.role", "a replica: it takes no jobs", "Name the primary, or Sentinel.")
    else:
        yield ok("redis.role", "the primary")


def memory(info: Mapping[str, object]) -> Finding:
    """Judge what becomes of jobs when the server's memory is full."""
    name = "redis.memory"
    policy, most = str(info.get("maxmemory_policy", "unknown")), int(str(info.get("maxmemory", 0)))
    seen = f"maxmemory-policy {policy}, maxmemory {most or 'not set'}"
    if policy != _KEEPS_ALL:
        judge = fail if most else warn
        return judge(name, f"{seen}: it may drop jobs", "Set maxmemory-policy to noeviction.")
    if most and int(str(info.get("used_memory", 0))) > 0.9 * most:
        return warn(name, f"{seen}, over 90 % used", "Raise maxmemory, or keep results for less.")
    return ok(name, seen)


def persistence(info: Mapping[str, object]) -> Finding:
    """Judge what is left of the jobs when the server has been restarted."""
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status", "ok") != "ok":
            return fail(
                "redis.persistence", "its log cannot be written", "Free the disk of the Redis host."
            )
        return ok("redis.persistence", "appendonly yes")
    return warn(
        "redis.persistence",
        "appendonly no: a restart loses what came after the last snapshot",
        "Set appendonly to yes.",
    )


def clock(skew_s: float) -> Finding:
    """Judge how far the server's clock is ahead of this host's, in seconds."""
    seen = f"{abs(skew_s) * 1000:.0f} ms {'ahead of' if skew_s > 0 else 'behind'} this host's"
    if abs(skew_s) > _SKEW_S:
        return warn("redis.clock", seen, "Synchronise the clocks of both hosts, as with chrony.")
    return ok("redis.clock", seen)


async def _latency(redis: ArqRedis) -> Finding:
    took: list[float] = []
    for _ in range(_PINGS):
        began = time.monotonic()
        await redis.ping()
        took.append(time.monotonic() - began)
    return latency(took)


async def _information(redis: ArqRedis) -> Iterable[Finding]:
    info: dict[str, object] = {}
    try:
        for section in ("server", "memory", "persistence", "replication"):
            info |= await redis.info(section)
        began = time.time()
        seconds, microseconds = await redis.time()
        ended = time.time()
    except ResponseError as error:
        return (
            warn(
                "redis.version", f"it does not say: {error}", "Allow the worker's user INFO, TIME."
            ),
        )
    skew = seconds + microseconds / 1e6 - (began + ended) / 2
    return (*server(info), memory(info), persistence(info), clock(skew))


async def _rights(redis: ArqRedis) -> Iterable[Finding]:
    name = "redis.rights"
    try:
        await redis.execute_command("EVAL", _SCRIPT, 0, keys.TENANTS)  # type: ignore[no-untyped-call]
        await redis.execute_command("BLPOP", keys.NOBODY, 0.01)  # type: ignore[no-untyped-call]
        async with redis.pubsub() as channel:
            await channel.subscribe(keys.NOBODY)
            await channel.get_message(timeout=1.0)
            await channel.unsubscribe(keys.NOBODY)
    except (NoPermissionError, ResponseError) as error:
        return (fail(name, str(error), _ALLOW),)
    except RedisError as error:
        return (fail(name, f"{type(error).__name__}: {error}", _ALLOW),)
    return (ok(name, "scripts, blocking reads and subscriptions are allowed"),)
