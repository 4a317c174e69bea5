"""A program limits itself: open files, file size, address space, core; and cannot go back."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path


def failure(attempt: Callable[[], object]) -> int | None:
    try:
        attempt()
    except OSError as error:
        return error.errno
    return None


def open_many() -> None:
    for _ in range(64):
        os.dup(0)


def write_much() -> None:
    with Path("file").open("wb", buffering=0) as file:
        file.write(b"x" * 4096)
        file.write(b"x")


assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
assert soft == hard

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
assert failure(write_much) == errno.EFBIG

resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
assert failure(lambda: mmap.mmap(-1, 2**30)) == errno.ENOMEM

resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
assert failure(open_many) == errno.EMFILE
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
except ValueError:
    pass
else:
    raise AssertionError("a limit was raised again")
