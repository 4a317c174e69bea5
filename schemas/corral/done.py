"""Waking those who wait for jobs' ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from corral import keys

_LISTEN_S = 5.0
_AGAIN_AFTER_S = 0.2
_SUBSCRIBED_WITHIN_S = 1.0
_MOST_LEFT = 64


class _Watch:
    def __init__(self) -> None:
        self.watchers = 0
        self.subscribed = asyncio.Event()
        self.done = asyncio.Event()
        self.data = b""


class Watching:
    """A wait for one job's end."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    async def wait(self, within_s: float) -> bytes:
        """Return the encoded result once it is told.

        Nothing, if the time is up, or if the result is too large for a
        message: then look for it.
        """
        if self._watch.done.is_set():
            # Told before, and nothing was found: the result expired, or is about to.
            await asyncio.sleep(within_s)
            return b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._watch.done.wait()
        return self._watch.data


class DoneListener:
    """One connection on which a client is told of the ends of its jobs.

    It is opened by the first wait. Messages can be lost: who waits looks for
    the result now and then all the same.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._channel: PubSub | None = None
        self._watches: dict[str, _Watch] = {}
        self._left: list[str] = []
        """Channels that nobody listens to any more: left together, now and then."""
        self._reader: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watching(self, job_id: str) -> AsyncIterator[Watching]:
        """Be told of a job's end within the block. The end may have come before.

        Never raises for Redis' sake: who looks for the result will be told.
        """
        name = keys.done(job_id)
        watch = self._watches.setdefault(name, _Watch())
        watch.watchers += 1
        try:
            if watch.watchers == 1:
                await self._subscribe(name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SUBSCRIBED_WITHIN_S):
                    await watch.subscribed.wait()
            yield Watching(watch)
        finally:
            watch.watchers -= 1
            if not watch.watchers:
                del self._watches[name]
                self._left.append(name)

    async def aclose(self) -> None:
        """Close the connection."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None

    async def _subscribe(self, name: str) -> None:
        if self._reader is None:
            # It subscribes to what is watched.
            self._reader = asyncio.create_task(self._read())
        elif self._channel is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._channel.subscribe(name)

    async def _read(self) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):
                async with self._redis.pubsub() as channel:
                    try:
                        await self._read_from(channel)
                    finally:
                        self._channel = None
            await asyncio.sleep(_AGAIN_AFTER_S)

    async def _read_from(self, channel: PubSub) -> None:
        self._left.clear()
        # Without one, redis-py returns at once when nothing is subscribed to.
        await channel.subscribe(keys.NOBODY)
        if self._watches:
            await channel.subscribe(*self._watches)
        self._channel = channel
        while True:
            message = await channel.get_message(timeout=_LISTEN_S)
            if message is None or len(self._left) >= _MOST_LEFT:
                await self._leave(channel)
            if message is None:
                continue
            watch = self._watches.get(message["channel"].decode(errors="replace"))
            if watch is None:
                continue
            if message["type"] == "subscribe":
                watch.subscribed.set()
            elif message["type"] == "message":
                watch.data = message["data"]
                watch.done.set()

    async def _leave(self, channel: PubSub) -> None:
        names = {*self._left} - self._watches.keys()
        self._left.clear()
        if names:
            await channel.unsubscribe(*names)
