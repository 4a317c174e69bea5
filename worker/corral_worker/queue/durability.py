"""Whether Redis will do: whether it knows the commands, and keeps what is entrusted to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from corral import ErrRedisUnsafe
from corral.reaching import reaching

OLDEST: Final = (7, 0)
"""The first Redis that knows all commands of the scripts. Any Valkey does."""

_KEEPS_ALL = "noeviction"
_REMEDY = "CONFIG SET maxmemory-policy noeviction, and the same in its configuration file"


def is_too_old(info: Mapping[str, object]) -> bool:
    """Return whether a server is known to lack commands that jobs take, by what INFO says of it."""
    # Valkey tells as this the Redis it is compatible with: 7.2.
    told = str(info.get("redis_version", ""))
    version = tuple(int(part) for part in told.split(".")[:2] if part.isdigit())
    return bool(version) and version < OLDEST


async def check_durability(redis: Redis) -> None:
    """Return if Redis can hold jobs and does not drop any of its own accord.

    Warns of what may still lose some.

    Asks by INFO, which managed services leave in place. Where an ACL forbids
    that too, a warning says that nothing was checked.

    Raises:
        ErrRedisUnsafe: Redis is older than :data:`OLDEST`, or would evict jobs
            with its memory full.
        ErrDaemonUnavailable: Redis does not answer.
    """
    log = structlog.get_logger()
    async with reaching(redis):
        try:
            server = await redis.info("server")
            found = {**await redis.info("memory"), **await redis.info("persistence")}
        except ResponseError as error:
            log.warning(
                "redis.not_checked",
                error=str(error),
                remedy="allow INFO, or see to it that it is Redis 7.0 or later, or Valkey, and that"
                " maxmemory-policy is noeviction",
            )
            return
    if is_too_old(server):
        version = str(server["redis_version"])
        raise ErrRedisUnsafe(
            f"Redis {version} is too old: it lacks commands without which no lease can be renewed,"
            " so that jobs would be killed in the middle; install Redis 7.0 or later, or Valkey",
            context={"redis_version": version},
        )
    policy = str(found.get("maxmemory_policy", _KEEPS_ALL))
    if policy != _KEEPS_ALL:
        if found.get("maxmemory"):
            raise ErrRedisUnsafe(
                f"Redis may drop jobs: once its maxmemory of {found['maxmemory']} bytes is used it"
                f" evicts keys, for its maxmemory-policy is {policy}; run {_REMEDY}",
                context={"maxmemory_policy": policy, "maxmemory": str(found["maxmemory"])},
            )
        # Without maxmemory nothing is evicted, until somebody sets it.
        log.warning("redis.may_evict", maxmemory_policy=policy, remedy=_REMEDY)
    if not found.get("aof_enabled"):
        log.warning(
            "redis.not_durable",
            appendonly="no",
            remedy="appendonly yes: a restart loses what came after the last snapshot",
        )
