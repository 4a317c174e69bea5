"""multiprocessing by fork, spawn and fork server: queues, locks, pools and shared memory."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Lock


def square(number: int) -> int:
    return number * number


def count(name: str, lock: Lock) -> None:
    shared = SharedMemory(name)
    assert shared.buf is not None
    for _ in range(100):
        with lock:
            shared.buf[0:2] = (int.from_bytes(shared.buf[0:2]) + 1).to_bytes(2)
    shared.close()


def main() -> None:
    contexts = (
        multiprocessing.get_context("fork"),
        multiprocessing.get_context("spawn"),
        multiprocessing.get_context("forkserver"),
    )
    for context in contexts:
        with ProcessPoolExecutor(max_workers=2, mp_context=context) as pool:
            assert list(pool.map(square, range(10))) == [n * n for n in range(10)]
        shared = SharedMemory(create=True, size=4096)
        assert shared.buf is not None
        lock = context.Lock()
        counting = [context.Process(target=count, args=(shared.name, lock)) for _ in range(3)]
        for process in counting:
            process.start()
        for process in counting:
            process.join(timeout=60)
        assert int.from_bytes(shared.buf[0:2]) == 300
        shared.close()
        shared.unlink()


if __name__ == "__main__":
    main()
