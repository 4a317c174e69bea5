"""Consumers that serve queues with an executor that runs nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
from arq.connections import ArqRedis
from msgspec.structs import replace
from support.null_executor import NullExecutor

from corral import Policy, Result
from corral_worker.admission.gate import Gate
from corral_worker.executor.executor import Attempt
from corral_worker.queue.commits import Keep
from corral_worker.queue.consumer import Consumer
from corral_worker.sandbox.stop import Stop

SOON_S = 30
"""Long enough for what takes milliseconds, on any machine."""

Serving = Callable[..., AbstractAsyncContextManager[Consumer]]


class Watched(NullExecutor):
    """Notes what ran, and refuses what a worker without settings of its own refuses."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running = 0
        self.most_running = 0
        self.began = anyio.Event()
        """Set once a program runs."""

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        Policy().narrowed(attempt.narrowing).enforce(attempt.job)
        self.started.append(attempt.job_id)
        self.running += 1
        self.most_running = max(self.most_running, self.running)

        async def begin() -> None:
            if attempt.begin is not None:
                await attempt.begin()
            self.began.set()

        try:
            return await super().execute(replace(attempt, begin=begin), stop)
        finally:
            self.running -= 1


@asynccontextmanager
async def serving(
    redis: ArqRedis,
    executor: NullExecutor,
    *,
    slots: int = 4,
    lease_s: float = 10.0,
    drain_s: float | None = None,
    keep: Keep | None = None,
    gate: Gate | None = None,
) -> AsyncIterator[Consumer]:
    """Run a consumer for the block; then it is drained, or cancelled if no time is given."""
    async with anyio.create_task_group() as tasks:
        consumer = Consumer(
            redis=redis,
            executor=executor,
            tenants={"acme"},
            slots=slots,
            lease_s=lease_s,
            keep=keep or Keep(result_s=60),
            gate=gate,
        )
        tasks.start_soon(consumer.run)
        try:
            yield consumer
            if drain_s is not None:
                await consumer.drain(drain_s)
        finally:
            tasks.cancel_scope.cancel()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds.

    Raises:
        TimeoutError: it does not.
    """
    with anyio.fail_after(SOON_S):
        while not await condition():
            await anyio.sleep(0.01)


async def nothing_is_left(redis: ArqRedis) -> bool:
    """Whether only results, and what is kept of tenants, are left."""
    left = await redis.keys()
    kept = (
        b"arq:result:",
        b"corral:results:",
        b"corral:claim:",
        b"corral:vt",
        b"corral:estimate",
        b"corral:clock",
        b"corral:epoch",
        b"corral:quiet",
        b"corral:tenants",
        b"corral:sweep",
        b"corral:workers",
        b"corral:wake",
        b"corral:defaults",
        b"corral:tenant:",
    )
    return not [key for key in left if not key.startswith(kept)]
