"""flock and fcntl locks exclude other processes; an fcntl lock has a range."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def refused_in_a_child(lock: Callable[[int], None]) -> bool:
    if (child := os.fork()) == 0:
        own = os.open("file", os.O_RDWR)
        try:
            lock(own)
        except BlockingIOError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def flock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def first_ten(descriptor: int) -> None:
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)


def next_ten(descriptor: int) -> None:
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)


Path("file").touch()
held = os.open("file", os.O_RDWR)

flock(held)
assert refused_in_a_child(flock)
fcntl.flock(held, fcntl.LOCK_UN)
assert not refused_in_a_child(flock)

first_ten(held)
assert refused_in_a_child(first_ten)
assert not refused_in_a_child(next_ten)
fcntl.lockf(held, fcntl.LOCK_UN)
assert not refused_in_a_child(first_ten)
