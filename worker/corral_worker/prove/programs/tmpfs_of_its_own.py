"""Mounts a tmpfs without a size, as root of namespaces of its own, and fills it."""

from __future__ import annotations

import signal
import sys

from corral_worker.prove.programs.attempts import attempt, call, libc, refused, tell

NEW_MOUNTS, NEW_USERS = 0x20000, 0x10000000


def mount() -> int:
    call(libc.unshare, NEW_USERS | NEW_MOUNTS)
    return call(libc.mount, b"tmpfs", b"/mnt", b"tmpfs", 0, None)


attempt("mount a file system of its own", mount)
tell()
if refused:
    sys.exit()
with open("/mnt/fill", "wb", buffering=0) as file:
    while True:
        try:
            file.write(b"\1" * (1 << 20))
        except OSError:
            signal.pause()
