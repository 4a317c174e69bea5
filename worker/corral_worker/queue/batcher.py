"""Many tasks' small requests, sent as few large ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Batch(Generic[Item, Answer]):
    def __init__(self) -> None:
        self.items: list[Item] = []
        self.size = 0
        self.done = anyio.Event()
        self.answers: Sequence[Answer] = ()
        self.error: Exception | None = None


class Batcher(Generic[Item, Answer]):
    """Sends what was asked for while the last batch was under way as the next one.

    So a lone request waits for nothing, and a thousand cost a few round trips.

    Args:
        send: sends a batch and returns an answer for each item, in order.
        most: most items of a batch.
        most_size: the batch is closed once it is this large.
        size: how large an item is.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        most: int = 256,
        most_size: int = 0,
        size: Callable[[Item], int] = lambda _item: 0,
    ) -> None:
        self._send = send
        self._most = most
        self._most_size = most_size
        self._size = size
        self._open: _Batch[Item, Answer] = _Batch()
        self._closed: list[_Batch[Item, Answer]] = []
        self._wake = anyio.Event()

    async def ask(self, item: Item) -> Answer:
        """Return the answer to one item.

        Raises what ``send`` raised. Cancelling the call may leave the item sent.
        """
        batch = self._open
        place = len(batch.items)
        batch.items.append(item)
        batch.size += self._size(item)
        if len(batch.items) >= self._most or (self._most_size and batch.size >= self._most_size):
            self._close()
        self._wake.set()
        await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        return batch.answers[place]

    async def run(self) -> None:
        """Send batches until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._closed or self._open.items:
                if not self._closed:
                    self._close()
                await self._send_one(self._closed.pop(0))

    def _close(self) -> None:
        self._closed.append(self._open)
        self._open = _Batch()

    async def _send_one(self, batch: _Batch[Item, Answer]) -> None:
        try:
            batch.answers = await self._send(batch.items)
        except Exception as error:  # noqa: BLE001 - it is the askers' to handle
            batch.error = error
        finally:
            batch.done.set()
