"""A file grows to the disk limit, meets ENOSPC, gives its room back; a gap takes none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

MIB = 1024**2

room = os.statvfs("/workspace")
size = room.f_bavail * room.f_frsize
file = Path("file")
written = 0
with file.open("wb", buffering=0) as opened:
    try:
        while True:
            written += opened.write(b"x" * MIB)
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 - there is no pytest here
assert size - MIB <= written <= size
assert file.stat().st_size == written
file.unlink()

with file.open("wb") as opened:
    opened.seek(size // 2)
    opened.write(b"x")
assert file.stat().st_size == size // 2 + 1
# What was skipped takes no room, although st_blocks says that it does.
assert os.statvfs("/workspace").f_bavail * room.f_frsize >= size - MIB
