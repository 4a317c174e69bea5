"""Leaves processes behind that left its group and its session, and ends."""

from __future__ import annotations

import os
import signal
import time

for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, signal.NSIG):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            time.sleep(1000)
        os._exit(0)
for _ in range(4):
    os.wait()
print("left", flush=True)
