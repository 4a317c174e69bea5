"""A user namespace makes root and file systems of its own, and nothing more of the sandbox."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

NEW_MOUNTS, NEW_USERS, NEW_NETWORK = 0x20000, 0x10000000, 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def failure(attempt: Callable[[], object]) -> int | None:
    try:
        attempt()
    except OSError as error:
        return error.errno
    return None


user = os.getuid()
assert libc.unshare(NEW_USERS | NEW_MOUNTS | NEW_NETWORK) == 0
Path("/proc/self/uid_map").write_text(f"0 {user} 1")
assert os.getuid() == 0
assert libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None) == 0
Path("/mnt/file").touch()

assert failure(lambda: time.clock_settime(time.CLOCK_REALTIME, 0)) == errno.EPERM
assert failure(Path("/usr/file").touch) == errno.EROFS
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
    assert failure(lambda: raw.sendto(b"\x08" + bytes(7), ("192.0.2.1", 0))) is not None
