"""Two hundred threads with a lock, a condition, a barrier and a pool."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

THREADS = 200

counted = 0
lock = threading.Lock()
barrier = threading.Barrier(THREADS)


def count() -> None:
    global counted  # noqa: PLW0603 - what threads share is the subject
    barrier.wait(timeout=60)
    for _ in range(100):
        with lock:
            counted += 1


threads = [threading.Thread(target=count) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert counted == 100 * THREADS

with ThreadPoolExecutor(max_workers=16) as pool:
    assert sum(pool.map(lambda number: number * number, range(1000))) == 332833500
