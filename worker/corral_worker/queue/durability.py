"""Whether Redis keeps what is entrusted to it."""

from __future__ import annotations

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from corral import ErrRedisUnsafe
from corral.reaching import reaching

_KEEPS_ALL = "noeviction"
_REMEDY = "CONFIG SET maxmemory-policy noeviction, and the same in its configuration file"


async def check_durability(redis: Redis) -> None:
    """Return if Redis does not drop jobs of its own accord; warn of what may still lose some.

    Asks by INFO, which managed services leave in place. Where an ACL forbids
    that too, a warning says that nothing was checked.

    Raises:
        ErrRedisUnsafe: with its memory full, Redis would evict jobs.
        ErrDaemonUnavailable: Redis does not answer.
    """
    log = structlog.get_logger()
    async with reaching(redis):
        try:
            found = {**await redis.info("memory"), **await redis.info("persistence")}
        except ResponseError as error:
            log.warning(
                "redis.not_checked",
                error=str(error),
                remedy="allow INFO, or see to it that maxmemory-policy is noeviction",
            )
            return
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
