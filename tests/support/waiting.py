"""Sandboxes that wait for a job."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from corral import EffectiveLimits, Job
from corral.result import StartWay
from corral_worker.pool.prepared import Prepared, Shape
from corral_worker.pool.ways import Failure, Ways
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

LIMITS = EffectiveLimits(wall_s=50)

READY_WITHIN_S = 60.0
"""Long enough for what takes tenths of a second, on any machine."""

Prepare = Callable[[Shape], Prepared]


class OnlyWay(Ways):
    """Knows one way, and never another."""

    def __init__(self, runsc: Runsc, way: StartWay) -> None:
        super().__init__(runsc)
        self._only = way

    def to_try(self) -> Sequence[StartWay]:
        return (self._only,)

    def worked(self, way: StartWay, failed: Sequence[Failure]) -> None:
        assert (way, failed) == (self._only, [])


@asynccontextmanager
async def ready(prepare: Prepare, limits: EffectiveLimits = LIMITS) -> AsyncIterator[Prepared]:
    """Yield a sandbox that waits; it is gone when the block has ended."""
    prepared = prepare(Shape.of(limits))
    seen = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prepared.live, seen.set)
        with anyio.fail_after(READY_WITHIN_S):
            await seen.wait()
        yield prepared
        prepared.dismiss()


async def warm(
    prepare: Prepare, job: Job, rootfs: Path, *, limits: EffectiveLimits = LIMITS
) -> Report:
    """Run a program in a sandbox that has waited for it."""
    async with ready(prepare, limits) as prepared, prepared.taken() as start:
        return await start.run(job, limits, rootfs, Stop())
