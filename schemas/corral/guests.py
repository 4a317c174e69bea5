"""Consumers of results that nobody gave a name: their groups forget them at their ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from corral.scripts import Script

_WITHIN_S: Final = 2.0


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer that is not to come back."""

    stream: str
    group: str
    name: str


class Guests:
    """The consumers of one client that leave their groups.

    One that has entries to acknowledge stays: so another one gets them.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script = Script("corral", "leave")
        self._present: set[Guest] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    @contextmanager
    def staying(self, guest: Guest) -> Iterator[None]:
        """Have a guest leave at the end of the block, which waits for nothing."""
        self._present.add(guest)
        try:
            yield
        finally:
            self._leave_later(guest)

    def _leave_later(self, guest: Guest) -> None:
        # Whoever it was may have been cancelled, and can wait no more.
        if guest not in self._present:
            return  # the client is closed
        self._present.remove(guest)
        task = asyncio.create_task(self._leave(guest))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def aclose(self) -> None:
        """Have all leave that are still there. Takes a few seconds at most."""
        # Those of iterators that were dropped, and not closed, too.
        for guest in tuple(self._present):
            self._leave_later(guest)
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _leave(self, guest: Guest) -> None:
        # A group that keeps it has a name more, and no less to tell.
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(_WITHIN_S):
                await self._script.run(self._redis, guest.stream, guest.group, guest.name)
