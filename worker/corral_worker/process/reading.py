"""Reads what programs write, as it comes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import anyio
import anyio.abc

_CHUNK = 256 * 1024
_FULL = 64 * 1024
"""Bytes that a pipe holds: pipe(7)."""

Feed = Callable[[bytes], None]


class Settling(Protocol):
    """What may have to be waited for before more is read."""

    @property
    def is_settled(self) -> bool:
        """Whether more may come at once."""

    async def settle(self) -> None:
        """Return when it may."""


class Reading:
    """Reads non-blocking descriptors as they come to hold something, for the length of its block.

    None has a task of its own: the event loop calls whoever is to be fed. A job has three of
    them which mostly hold next to nothing, and a task costs more than to read that. A program
    is never blocked by a full pipe for longer than the event loop takes to come round, and
    :class:`Settling` to settle; one that writes quicker than this reads leaves the loop to others.

    Args:
        tasks: where is waited for what has to settle; what fails on the way fails there.
    """

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._sources: list[_Source] = []
        self._left = 0
        self._ended = anyio.Event()

    def __enter__(self) -> Self:
        """Return the reading itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Feed what is there, and read no more.

        What is being settled by then is fed when that is over, before the task group ends.
        """
        for source in self._sources:
            source.close()

    def read(
        self,
        descriptor: int,
        feed: Feed,
        *,
        settling: Settling | None = None,
        pause_s: float = 0.0,
    ) -> None:
        """Feed every chunk of a descriptor until its end, from now on.

        Args:
            descriptor: it stays open until the task group has ended.
            feed: called in the event loop.
            settling: what each chunk may make wait.
            pause_s: seconds before each look at it, until :meth:`hurry`. What fills a pipe in less
                is read without them.
        """
        self._left += 1
        source = _Source(descriptor, feed, settling, pause_s, self._tasks, self._end_of_one)
        self._sources.append(source)
        source.go_on()

    def hurry(self) -> None:
        """Read what is there, and pause no more."""
        for source in self._sources:
            source.hurry()

    async def ended(self) -> None:
        """Wait for the end of all. Whoever waits must have a deadline: it may be held open."""
        if self._left:
            await self._ended.wait()

    def _end_of_one(self) -> None:
        self._left -= 1
        if not self._left:
            self._ended.set()


class _Source:
    def __init__(  # noqa: PLR0917 - made in one place only
        self,
        descriptor: int,
        feed: Feed,
        settling: Settling | None,
        pause_s: float,
        tasks: anyio.abc.TaskGroup,
        ended: Callable[[], None],
    ) -> None:
        # anyio knows descriptors only to tasks that wait for them.
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._feed = feed
        self._settling = settling
        self._pause_s = pause_s
        self._tasks = tasks
        self._ended = ended
        self._is_open = True
        self._is_settling = False
        self._listens = False
        self._pause: asyncio.TimerHandle | None = None

    def go_on(self) -> None:
        """Read on when there is something, after a pause if there are to be any."""
        if self._pause_s:
            self._pause_for(self._pause_s)
        else:
            self._listen()

    def hurry(self) -> None:
        """Read what is there, and pause no more."""
        self._pause_s = 0.0
        # Most often all that is left fits into one chunk, and the next look finds the end.
        for look in (self._look, self._look, self._listen):
            if self._is_open and not self._is_settling:
                look()

    def close(self) -> None:
        """Feed what is there, and read no more."""
        if self._is_open and not self._is_settling:
            self._take()
        self._shut()

    def _shut(self) -> None:
        self._is_open = False
        self._deafen()

    def _pause_for(self, seconds: float) -> None:
        # Without asking the kernel to tell when there is something: that costs as much as a look.
        self._deafen()
        self._pause = self._loop.call_later(seconds, self._look)

    def _listen(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if not self._listens:
            self._listens = True
            self._loop.add_reader(self._descriptor, self._look)

    def _deafen(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._listens:
            self._listens = False
            self._loop.remove_reader(self._descriptor)

    def _look(self) -> None:
        chunk = self._take()
        if chunk is None:
            if self._is_open and self._pause_s:
                self._pause_for(self._pause_s)
        elif not chunk:
            self._shut()
            self._ended()
        elif self._settling is not None and not self._settling.is_settled:
            self._deafen()
            self._is_settling = True
            self._tasks.start_soon(self._settle, self._settling)
        elif self._pause_s:
            # Who fills a pipe is held up by it.
            self._pause_for(self._pause_s if len(chunk) < _FULL else 0.0)

    def _take(self) -> bytes | None:
        """Feed what is there, and return it: nothing at the end, None if there is none now."""
        try:
            chunk = os.read(self._descriptor, _CHUNK)
            if chunk:
                self._feed(chunk)
        except BlockingIOError:
            return None
        except Exception as error:  # noqa: BLE001 - raised where it belongs
            self._shut()
            self._tasks.start_soon(_fail, error)
            return None
        return chunk

    async def _settle(self, settling: Settling) -> None:
        try:
            await settling.settle()
        finally:
            self._is_settling = False
            if not self._is_open:
                # Nobody has read meanwhile. A pipe holds less than is taken at one time: whoever
                # still writes to it keeps nobody here.
                self._take()
        if self._is_open:
            self.go_on()


async def _fail(error: Exception) -> None:
    raise error
