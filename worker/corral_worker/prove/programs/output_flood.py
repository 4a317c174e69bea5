"""Writes much to both streams at the same time."""

from __future__ import annotations

import os
import sys
import threading

size = int(sys.argv[1])


def flood(descriptor: int) -> None:
    rest = size
    while rest:
        rest -= os.write(descriptor, b"x" * min(rest, 1 << 16))


threads = [threading.Thread(target=flood, args=(descriptor,)) for descriptor in (1, 2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
