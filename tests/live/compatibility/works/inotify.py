"""inotify reports what is created, written, moved and deleted in a directory."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path

MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
HEADER = struct.Struct("iIII")

libc = ctypes.CDLL(None, use_errno=True)
watcher = libc.inotify_init1(os.O_NONBLOCK)
assert watcher >= 0
watched = Path("watched")
watched.mkdir()
wanted = MODIFY | MOVED_FROM | MOVED_TO | CREATE | DELETE
assert libc.inotify_add_watch(watcher, bytes(watched), wanted) >= 0

(watched / "file").write_text("text")
(watched / "file").rename(watched / "other")
(watched / "other").unlink()

assert select.select([watcher], [], [], 60)[0]
events = os.read(watcher, 4096)
seen: list[tuple[int, str]] = []
while events:
    _, mask, _, length = HEADER.unpack_from(events)
    name = events[HEADER.size : HEADER.size + length].rstrip(b"\0").decode()
    seen.append((mask & wanted, name))
    events = events[HEADER.size + length :]
assert seen == [
    (CREATE, "file"),
    (MODIFY, "file"),
    (MOVED_FROM, "file"),
    (MOVED_TO, "other"),
    (DELETE, "other"),
]
