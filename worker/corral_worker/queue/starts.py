"""Marks in Redis that a program is about to start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from corral import ErrWorkerLost
from corral.scripts import Script
from corral_worker.queue.batcher import Batcher
from corral_worker.queue.leases import Lease

_AGAIN_AFTER_S = 0.05
_GO_ON = 1
_CANCELLED = 2


class Starts:
    """Says before a program starts that it may have started.

    A worker that dies afterwards leaves the mark: the job is not run again
    unless it allows that.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script = Script(__package__, "begin")
        self._batcher: Batcher[Lease, int] = Batcher(self._send)

    async def run(self) -> None:
        """Send marks until cancelled."""
        await self._batcher.run()

    async def begin(self, lease: Lease) -> None:
        """Return once the start is marked. A cancelled attempt was then told to stop.

        Raises:
            ErrWorkerLost: the lease is lost, or Redis does not answer; nothing
                may be started.
        """
        answer = await self._ask(lease)
        if answer == _CANCELLED:
            lease.stop.request("cancelled")
        elif answer != _GO_ON or lease.lost:
            lease.lost = True
            raise ErrWorkerLost("the worker lost the job before its program started")

    async def _ask(self, lease: Lease) -> int:
        while True:
            try:
                return await self._batcher.ask(lease)
            except (RedisError, OSError) as error:
                # To ask again is harmless. The lease's guard ends it.
                if lease.stop.cause is not None:
                    raise ErrWorkerLost(
                        "Redis did not answer when the program was about to start"
                    ) from error
                await anyio.sleep(_AGAIN_AFTER_S)

    async def _send(self, leases: Sequence[Lease]) -> Sequence[int]:
        words = [word for lease in leases for word in (lease.claim.job_id, lease.claim.token)]
        return cast("Sequence[int]", await self._script.run(self._redis, *words))
