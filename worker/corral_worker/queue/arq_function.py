"""The arq function ``execute``: what an arq worker calls for each job."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from corral import CorralError, ErrWorkerLost, Job, JobCancelled, Outcome, Result
from corral_worker.executor.executor import Attempt
from corral_worker.executor.supervisor import RunningAttempt, Supervisor


class ArqFunction:
    """Runs the jobs of one tenant's queue through the supervisor.

    Args:
        supervisor: owns the sandboxes.
        tenant: whose queue it is. The queue counts, not what an id says.
        aborted: tells whether arq cancelled the task of a job id because
            somebody asked for its abort.
        give_back_try: makes arq forget one try of a job id.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        tenant: str,
        *,
        aborted: Callable[[str], bool],
        give_back_try: Callable[[str], Awaitable[None]],
    ) -> None:
        self._supervisor = supervisor
        self._tenant = tenant
        self._aborted = aborted
        self._give_back_try = give_back_try

    async def execute(self, ctx: Mapping[str, object], job: Job) -> Result:
        """Run a job and return its result, or raise its typed error.

        arq cancels the task natively, for an abort and at its own end. The
        sandbox is dead before this raises, however often it is cancelled.

        Raises:
            CorralError: the job was rejected, or a fault struck.
            JobCancelled: an abort ended the job; it has the partial output.
            asyncio.CancelledError: the worker stops and the job may run
                elsewhere: arq puts it back on its queue.
        """
        attempt = Attempt(
            job=job,
            job_id=str(ctx["job_id"]),
            tenant=self._tenant,
            number=cast("int", ctx["job_try"]),
            enqueued_at=cast("dt.datetime", ctx["enqueue_time"]),
        )
        if attempt.number > job.attempts:
            raise ErrWorkerLost(
                f"a worker went away while it held the job, and the job allows"
                f" {job.attempts} attempt(s): its program may have run",
                retry_safety="unknown",
            )
        running = self._supervisor.start(attempt)
        ending = await self._ended(running)
        if isinstance(ending, Result):
            if ending.outcome is Outcome.CANCELLED:
                raise JobCancelled(ending)
            return ending
        await self._hand_back(attempt, ending)
        raise ending

    async def _ended(self, running: RunningAttempt) -> Result | CorralError:
        while True:
            try:
                return await running.ended()
            except asyncio.CancelledError:
                aborted = self._aborted(running.attempt.job_id)
                running.stop("cancelled" if aborted else "shutdown")

    async def _hand_back(self, attempt: Attempt, error: CorralError) -> None:
        if not isinstance(error, ErrWorkerLost):
            return
        if error.retry_safety == "not_started":
            await self._give_back_try(attempt.job_id)
            raise asyncio.CancelledError
        if attempt.number < attempt.job.attempts:
            raise asyncio.CancelledError
