"""Sandboxes that wait for a job."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from corral import EffectiveLimits
from corral_worker.pool.prepared import Prepared, Shape

READY_WITHIN_S = 60.0
"""Long enough for what takes tenths of a second, on any machine."""

Prepare = Callable[[Shape], Prepared]


@asynccontextmanager
async def ready(prepare: Prepare, limits: EffectiveLimits) -> AsyncIterator[Prepared]:
    """Yield a sandbox that waits; it is gone when the block has ended."""
    prepared = prepare(Shape.of(limits))
    seen = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prepared.live, seen.set)
        with anyio.fail_after(READY_WITHIN_S):
            await seen.wait()
        yield prepared
        prepared.dismiss()
