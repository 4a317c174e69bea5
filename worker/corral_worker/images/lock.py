"""A lock between processes that vanishes with its holder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio.from_thread

_DEADLINE_S: Final = 30.0
_POLL_S: Final = 0.01


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold the one exclusive lock on ``directory``; for a worker thread, not the event loop.

    Everyone holds it for a few system calls only. Waiting ends when the task
    that started the thread is cancelled, or with :class:`TimeoutError` after 30 s.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Polled, because a blocking flock() in a thread could not be cancelled
        # if the holder was stopped.
        gives_up = time.monotonic() + _DEADLINE_S
        while not _try_lock(descriptor):
            if time.monotonic() > gives_up:
                raise TimeoutError(
                    f"another process has held the lock on {directory} for {_DEADLINE_S:.0f} s: "
                    "see who with `lslocks`, and end it"
                )
            time.sleep(_POLL_S)
            anyio.from_thread.check_cancelled()
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
