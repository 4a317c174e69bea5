"""Starts threads as long as it can, and tells how many there are."""

from __future__ import annotations

import threading
import time

threading.stack_size(64 * 1024)
count = 0
while True:
    try:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    except (RuntimeError, MemoryError):
        time.sleep(0.01)
        continue
    count += 1
    if count % 50 == 0:
        print(count, flush=True)
