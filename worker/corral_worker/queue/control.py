"""Listens for what callers want stopped."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from corral import keys
from corral_worker.queue.trouble import reason

_LISTEN_S = 20.0
_AGAIN_AFTER_S = 0.2


class ControlChannel:
    """The channel on which this worker learns of cancelled attempts at once.

    A message that is lost is made up for by the next renewal, which tells the same.

    Args:
        redis: where the channel is.
        worker: this worker's name.
        cancel: called with the fencing token of each attempt to stop.
    """

    def __init__(self, redis: Redis, *, worker: str, cancel: Callable[[str], None]) -> None:
        self._redis = redis
        self._channel = keys.control(worker)
        self._cancel = cancel
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Listen until cancelled. An error of Redis makes it listen anew."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                self._log.warning("control.interrupted", error=reason(error))
            await anyio.sleep(_AGAIN_AFTER_S)

    async def _listen(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(self._channel)
            while True:
                message = await channel.get_message(timeout=_LISTEN_S)
                if message is not None:
                    self._cancel(message["data"].decode(errors="replace"))
