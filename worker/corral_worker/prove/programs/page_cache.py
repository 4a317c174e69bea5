"""Reads more of the image than its memory can hold, and maps a file of its own."""

from __future__ import annotations

import mmap
import os
import sys

from corral_worker.prove.programs.attempts import tell

wanted = int(sys.argv[1])
seen = 0
for parent, _, files in os.walk("/usr"):
    for name in files:
        path = os.path.join(parent, name)
        if seen < wanted and os.path.isfile(path) and not os.path.islink(path):
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    seen += len(chunk)
with open("/workspace/mapped", "w+b") as file:
    file.truncate(8 << 20)
    with mmap.mmap(file.fileno(), 0) as mapped:
        for offset in range(0, len(mapped), 4096):
            mapped[offset] = 1
tell(read=seen)
