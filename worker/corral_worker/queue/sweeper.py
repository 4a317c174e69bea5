"""Finds what nobody told of: jobs of stock arq clients, aborts, deadlines."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import cast

import anyio
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from corral import Outcome, Result, keys
from corral.ending_codec import encode_ending
from corral.scripts import Script
from corral_worker.admission.gate import Gate
from corral_worker.queue.commits import Keep
from corral_worker.queue.trouble import reason

_LEADER_EVERY_S = 0.4
_OTHERS_EVERY_S = 1.5
_LEADER_LEASE_S = 3.0
_GONE_AFTER_S = 10.0


class Sweeper:
    """Sweeps for all workers, or stands by while another one does.

    Each sweep is one bounded script, and also the worker's sign of life.

    Args:
        redis: where the queues are.
        worker: this worker's name.
        keep: how long and how many results are kept.
        gate: while it is closed, the worker is known to take no jobs.
    """

    def __init__(self, redis: Redis, *, worker: str, keep: Keep, gate: Gate) -> None:
        self._redis = redis
        self._worker = worker
        self._keep = keep
        self._gate = gate
        self._unready = keys.UNREADY_PREFIX + worker
        self._script = Script(__package__, "sweep")
        self._registers = Script(__package__, "register")
        self._log = structlog.get_logger()

    async def register(self, tenants: frozenset[str]) -> None:
        """Make tenants known, so that jobs of stock arq clients on their queues are found.

        Raises:
            RedisError: Redis does not answer.
        """
        if tenants:
            await self._registers.run(self._redis, *sorted(tenants))

    async def run(self) -> None:
        """Sweep until cancelled. An error of Redis makes it try again."""
        while True:
            pause = _OTHERS_EVERY_S
            try:
                if await self.sweep():
                    pause = _LEADER_EVERY_S
            except (RedisError, OSError) as error:
                self._log.warning("sweep.failed", error=reason(error))
            await anyio.sleep(pause)

    async def sweep(self) -> bool:
        """Sweep once; False if another worker does.

        Raises:
            RedisError: Redis does not answer.
        """
        reply = await self._script.run(
            self._redis,
            self._worker,
            round(_GONE_AFTER_S * 1000),
            round(_LEADER_LEASE_S * 1000),
            encode_ending(Result(outcome=Outcome.CANCELLED)),
            encode_ending(Result(outcome=Outcome.EXPIRED)),
            *self._keep.words(),
            ",".join(sorted(self._gate.short_of)),
        )
        return reply == 1

    async def leave(self) -> None:
        """Let others sweep at once, and count as gone.

        Raises:
            RedisError: Redis does not answer.
        """
        await cast("Awaitable[int]", self._redis.zrem(keys.WORKERS, self._worker))
        await cast("Awaitable[int]", self._redis.delete(self._unready))
        leader = await cast("Awaitable[bytes | None]", self._redis.get(keys.SWEEPER))
        if leader is not None and leader.decode() == self._worker:
            await cast("Awaitable[int]", self._redis.delete(keys.SWEEPER))
