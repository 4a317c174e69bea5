"""Room in memory for large results."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
import msgspec


class _Turn(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    size: int
    come: anyio.Event


class Room:
    """Memory that large results share, each from when it is read until Redis has it.

    Who asks for some waits for those who asked before. Who needs none asks for none,
    and waits for nobody.

    Args:
        size: bytes; who asks for more gets all of it, alone.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = size
        self._turns: deque[_Turn] = deque()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], Awaitable[None]]]:
        """Give what is to be awaited once, with a size, before so many bytes are read.

        They are given back at the end of the block. Cancelled while it waits, it has none.
        """
        taken = 0

        async def take(size: int) -> None:
            nonlocal taken
            taken = await self._take(min(size, self._size))

        try:
            yield take
        finally:
            self._give_back(taken)

    async def _take(self, size: int) -> int:
        turn = _Turn(size=size, come=anyio.Event())
        self._turns.append(turn)
        self._call_up()
        try:
            await turn.come.wait()
        except BaseException:
            if turn in self._turns:
                self._turns.remove(turn)
                size = 0
            self._give_back(size)
            raise
        return size

    def _give_back(self, size: int) -> None:
        self._free += size
        self._call_up()

    def _call_up(self) -> None:
        while self._turns and self._turns[0].size <= self._free:
            turn = self._turns.popleft()
            self._free -= turn.size
            turn.come.set()
