"""Pipes, and what writes to them."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Literal, Self

import anyio
import anyio.lowlevel

_CHUNK = 256 * 1024


class Pipe:
    """A pipe whose two ends are closed when the block ends.

    ``parent`` names the end that stays here: it does not block.
    """

    def __init__(self, *, parent: Literal["read", "write"]) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self._open = {self.read_end, self.write_end}
        self.ours = self.read_end if parent == "read" else self.write_end
        self.theirs = self.write_end if parent == "read" else self.read_end
        os.set_blocking(self.ours, False)

    def __enter__(self) -> Self:
        """Return the pipe itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close both ends."""
        self.close(self.read_end, self.write_end)

    def close(self, *ends: int) -> None:
        """Close ends; closed already is no error."""
        for end in ends:
            if end in self._open:
                self._open.remove(end)
                os.close(end)


async def supply(descriptor: int, data: bytes) -> None:
    """Write ``data`` to a non-blocking descriptor; a reader that went away is no error.

    Does not close the descriptor. Cancellation leaves the rest unwritten.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest[:_CHUNK]) :]
        except BlockingIOError:
            await anyio.wait_writable(descriptor)
            continue
        except BrokenPipeError:
            return
        await anyio.lowlevel.checkpoint()
