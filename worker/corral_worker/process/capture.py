"""Bounded capture of a stream, however much comes through it."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import anyio

from corral_worker.process.thread import in_thread

_IN_MEMORY = 64 * 1024
"""Bytes of one stream that may be in memory: thousands of streams may flood at one time."""
_WRITERS = 4


class Captured:
    """What was kept of a stream, in memory or on disk.

    What is on disk stays there until this is closed, or nobody has it any more.

    Args:
        data: what was kept, or a file that has it as :class:`BoundedOutput` keeps it.
        total: bytes the program wrote in all.
        gap: offset in :attr:`data` where bytes were left out; None if none were.
        oldest: offset in such a file of the first bytes after the gap.
    """

    def __init__(
        self, *, data: bytes | IO[bytes], total: int, gap: int | None, oldest: int = 0
    ) -> None:
        self.total = total
        self.gap = gap
        self._oldest = oldest
        self._cut = 0
        self._memory = b""
        self._file: IO[bytes] | None = None
        self.on_disk = 0
        """Bytes that are on disk: so much memory takes who asks for :attr:`data`."""
        if isinstance(data, bytes):
            self._memory = data
            return
        self._file = data
        self.on_disk = os.fstat(data.fileno()).st_size
        # A report may get lost on its way, when the worker ends: its files must not.
        self._closing = weakref.finalize(self, data.close)

    def __enter__(self) -> Self:
        """Return this itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give up what is on disk."""
        if self._file is not None:
            self._closing()

    @property
    def data(self) -> bytes:
        """What was kept. What is :attr:`on_disk` is read: ask in a thread.

        Raises:
            OSError: the disk fails.
        """
        if self._file is None:
            return self._memory
        self._file.seek(0)
        kept = _in_order(self._file.read(), self.gap, self._oldest)
        return kept[: len(kept) - self._cut]

    def cut(self, words: bytes) -> None:
        """Take off the stream's last bytes if they are these, as far as they were kept.

        To be called once. What is :attr:`on_disk` is read: call it in a thread.

        Raises:
            OSError: the disk fails.
        """
        size = len(self._memory) if self._file is None else self.on_disk
        # Before the gap is what was written first.
        kept = min(len(words), size - (self.gap or 0))
        if len(words) > self.total or (self.gap is None and kept < len(words)):
            return
        if self._last(kept) != words[len(words) - kept :]:
            return
        self.total -= len(words)
        if self.gap is not None and self.total <= self.gap:
            self.gap, kept = None, size - self.total
        self._memory = self._memory[: size - kept]
        self._cut = kept

    def _last(self, size: int) -> bytes:
        if self._file is None:
            return self._memory[len(self._memory) - size :]
        descriptor = self._file.fileno()
        if self.gap is None:
            return os.pread(descriptor, size, self.on_disk - size)
        # They end where the oldest begin, and may go round the end of the file.
        ahead = min(size, self._oldest - self.gap)
        round_it = os.pread(descriptor, size - ahead, self.on_disk - (size - ahead))
        return round_it + os.pread(descriptor, ahead, self._oldest - ahead)


class Spool:
    """Where output goes that is too large to be kept in memory.

    Args:
        directory: on a disk; it must be there by the time there is such output.
        writers: how many may write at one time, and capture what they have written. However
            many wait for a disk that stands still, they take no more threads.
    """

    def __init__(self, directory: Path, writers: anyio.CapacityLimiter) -> None:
        self.directory = directory
        self.writers = writers

    @staticmethod
    def new_writers() -> anyio.CapacityLimiter:
        """Return what all spools of a worker are to share."""
        return anyio.CapacityLimiter(_WRITERS)


class BoundedOutput:
    """Keeps the head and the tail of a stream and counts the rest.

    Without a spool it takes ``limit`` bytes of memory at most. With one, it takes little
    memory whatever the limit, if :meth:`settle` is awaited after each :meth:`feed`. The
    spool's files have no name: nothing of them is left, whatever becomes of the worker.

    What was kept is given up with the block, unless it was :meth:`captured`.

    Args:
        limit: bytes to keep.
        spool: where to keep them.
    """

    def __init__(self, limit: int, spool: Spool | None = None) -> None:
        self._head = limit // 2
        self._tail = limit - self._head
        self._spool = spool if limit > _IN_MEMORY else None
        self._total = 0
        self._memory = bytearray()
        self._fresh = bytearray()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Return the output itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give up what was kept."""
        if self._file is not None:
            self._file.close()

    @property
    def on_disk(self) -> bool:
        """Whether some of it has been written to the spool."""
        return self._file is not None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        if self._spool is not None:
            self._fresh += chunk
        else:
            self._put(self._memory, self._total, chunk)
        self._total += len(chunk)

    @property
    def is_settled(self) -> bool:
        """Whether there is room for more in memory."""
        return self._spool is None or len(self._fresh) <= _IN_MEMORY

    async def settle(self) -> None:
        """Write to the spool what is too much for the memory.

        On cancellation what is being written is still written.

        Raises:
            OSError: the disk is full, for example.
        """
        if self._spool is not None and not self.is_settled:
            await in_thread(self._write_out, self._spool.directory, limiter=self._spool.writers)

    def captured(self) -> Captured:
        """Return what was kept, to be called once, at the end.

        If it is :attr:`on_disk`, its last bytes are written there: call it in a thread, as one
        of the spool's writers.

        Raises:
            OSError: the disk fails.
        """
        gap = None if self._total <= self._head + self._tail else self._head
        oldest = self._head
        if self._tail:
            oldest += (self._total - self._head) % self._tail
        if self._file is not None:
            self._write(self._file)
            file, self._file = self._file, None
            return Captured(data=file, total=self._total, gap=gap, oldest=oldest)
        kept = self._memory
        if self._fresh:
            self._put(kept, 0, self._fresh)
        return Captured(data=_in_order(kept, gap, oldest), total=self._total, gap=gap)

    def _put(self, memory: bytearray, position: int, data: bytes | bytearray) -> None:
        for offset, part in self._places(position, data):
            # Of a large chunk only the end may be kept, which need not begin where the tail does.
            memory.extend(bytes(max(0, offset - len(memory))))
            memory[offset : offset + len(part)] = part

    def _write_out(self, directory: Path) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - closed
            # with this
        self._write(self._file)

    def _write(self, file: IO[bytes]) -> None:
        for offset, part in self._places(self._total - len(self._fresh), bytes(self._fresh)):
            done = 0
            while done < len(part):
                done += os.pwrite(file.fileno(), part[done:], offset + done)
        self._fresh.clear()

    def _places(self, position: int, data: bytes | bytearray) -> Iterator[tuple[int, memoryview]]:
        """Give where to put which part of the bytes that stand at a position of the stream.

        The head stays as it is. What follows goes round and round in the room for the tail.
        """
        rest = memoryview(data)
        if position < self._head:
            first = rest[: self._head - position]
            yield position, first
            position, rest = position + len(first), rest[len(first) :]
        if not self._tail:
            return
        lost = max(0, len(rest) - self._tail)
        position, rest = position + lost, rest[lost:]
        while rest:
            offset = (position - self._head) % self._tail
            part = rest[: self._tail - offset]
            yield self._head + offset, part
            position, rest = position + len(part), rest[len(part) :]


def _in_order(kept: bytes | bytearray, gap: int | None, oldest: int) -> bytes:
    if gap is None:
        return bytes(kept)
    view = memoryview(kept)
    return b"".join((view[:gap], view[oldest:], view[gap:oldest]))
