"""Runs nothing: for measuring the queue alone, and for its tests."""

from __future__ import annotations

import time

import anyio
from support.stops import asked

from corral import ErrWorkerLost, Outcome, Result
from corral_worker.executor.executor import Attempt
from corral_worker.sandbox.stop import Stop


class NullExecutor:
    """Pretends to run programs: ``sleep SECONDS`` waits, anything else exits with 0 at once."""

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        """Return how the program would have ended.

        Raises:
            ErrWorkerLost: the worker was stopped, or has lost the job.
        """
        if stop.cause is None and attempt.begin is not None:
            await attempt.begin()
        started = stop.cause is None
        job = attempt.job
        began = time.monotonic()
        if started and job.argv[0] == "sleep":
            with anyio.move_on_after(float(job.argv[1])):
                await asked(stop)
        if stop.cause == "cancelled":
            return Result(outcome=Outcome.CANCELLED, labels=job.labels)
        if stop.cause is not None:
            raise ErrWorkerLost(
                "the worker was stopped", retry_safety="started" if started else "not_started"
            )
        output = " ".join(job.argv[1:]).encode()
        return Result(
            outcome=Outcome.EXITED,
            exit_code=0,
            stdout=output,
            stdout_bytes=len(output),
            duration_s=time.monotonic() - began,
            labels=job.labels,
        )
