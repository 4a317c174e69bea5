"""A worker process whose jobs do nothing: for tests that kill it, and for benchmarks.

Usage: null_worker.py URL SLOTS LEASE_S
Prints its name when it serves, and drains on SIGTERM.
"""

from __future__ import annotations

import logging
import signal
import sys

import anyio
import structlog
from support.null_executor import NullExecutor

from corral.connection import connect
from corral_worker.queue.consumer import Consumer


async def serve(url: str, slots: int, lease_s: float) -> None:
    redis = connect(url)
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        consumer = Consumer(
            redis=redis, executor=NullExecutor(), tenants=(), slots=slots, lease_s=lease_s
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            sys.stdout.write(f"{consumer.worker}\n")
            sys.stdout.flush()
            async for _ in signals:
                break
            await consumer.drain(grace_s=0.2)
            tasks.cancel_scope.cancel()
    await redis.aclose(close_connection_pool=True)


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    anyio.run(serve, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
