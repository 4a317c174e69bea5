"""Leases, as far as they need no Redis."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel
from structlog.testing import capture_logs

from corral.connection import connect
from corral_worker.queue.leases import Leases


async def test_a_worker_that_stood_still_says_for_how_long() -> None:
    redis = connect("unix:///nonexistent.sock")
    leases = Leases(redis, lease_s=1.0)

    with capture_logs() as logs, anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leases.guard)
            await anyio.lowlevel.checkpoint()
            time.sleep(0.4)  # noqa: ASYNC251 - it is what this is about
            while not logs:
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    await redis.aclose(close_connection_pool=True)

    assert logs[0]["event"] == "worker.stood_still"
    assert logs[0]["for_s"] >= 0.3
