"""One job in the foreground: submitted, waited for, and cancelled with its caller."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import anyio
import msgspec
from anyio.abc import TaskStatus

from corral import Client, CorralError, Fault, Job, JobStatus, Result, SubmittedJob

_HINT_AFTER_S = 3.0
_CANCEL_QUEUED_S = 2.0
_CANCEL_RUNNING_S = 15.0
_HINT = "still queued: is a worker running for this Redis? start one with: corral worker"


GivenUp = int | Literal["timeout"]
"""Why a job was cancelled: the number of a signal, or the end of patience."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How the wait for a job ended."""

    job_id: str | None
    """None if it was never queued, or that is not known."""
    ending: Result | CorralError
    given_up: GivenUp | None = None
    """Set if the job was cancelled from here."""


async def run_in_foreground(
    job: Job, *, tenant: str, patience_s: float | None, say: Callable[[str], None]
) -> Ended:
    """Submit a job and wait until it has ended.

    SIGINT, SIGTERM and the end of ``patience_s`` cancel the job and wait,
    for seconds at most, until that is confirmed; a second signal does not wait.

    Args:
        job: what to run.
        tenant: whose queue it goes to.
        patience_s: seconds to wait at most, in the queue too; None is for ever.
        say: called with a line for the person who waits.

    Cancelling the call leaves the job alone.
    """
    wait = _Wait(math.inf if patience_s is None else anyio.current_time() + patience_s)
    async with anyio.create_task_group() as tasks:
        await tasks.start(wait.watch_signals)
        ended = await wait.follow(job, tenant, say)
        tasks.cancel_scope.cancel()
    return ended


class _Wait:
    def __init__(self, deadline: float) -> None:
        self._patience = anyio.CancelScope(deadline=deadline)
        self._confirmation = anyio.CancelScope()
        self._signal: int | None = None
        self._job: SubmittedJob | None = None

    async def watch_signals(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if self._signal is None:
                    self._signal = number
                    self._patience.cancel()
                else:
                    self._confirmation.cancel()

    async def follow(self, job: Job, tenant: str, say: Callable[[str], None]) -> Ended:
        try:
            async with Client() as client:
                with self._patience:
                    self._job = await client.submit(job, tenant=tenant)
                    ending = await _ending(self._job, say)
                    return Ended(job_id=self._job.id, ending=ending)
                return await self._cancelled(say)
        except CorralError as error:
            return Ended(job_id=None if self._job is None else self._job.id, ending=error)

    async def _cancelled(self, say: Callable[[str], None]) -> Ended:
        given_up: GivenUp = "timeout" if self._signal is None else self._signal
        if self._job is None:
            ending: Result | CorralError = Fault(
                "given up while the job was submitted: it may be queued", retry_safety="unknown"
            )
            return Ended(job_id=None, ending=ending, given_up=given_up)
        say(f"cancelling {self._job.id}")
        ending = Fault(
            f"{self._job.id} was asked to end, and no worker has confirmed it yet",
            retry_safety="unknown",
        )
        with self._confirmation:
            queued = await self._job.status() is JobStatus.QUEUED
            self._confirmation.deadline = anyio.current_time() + (
                _CANCEL_QUEUED_S if queued else _CANCEL_RUNNING_S
            )
            await self._job.cancel(timeout=None)
            try:
                ending = await self._job.result()
            except CorralError as error:
                ending = error
        return Ended(job_id=self._job.id, ending=ending, given_up=given_up)


async def _ending(job: SubmittedJob, say: Callable[[str], None]) -> Result | CorralError:
    # Errors are values in here, for the task group would wrap them.
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_hint, job, say)
        try:
            ending: Result | CorralError = await job.result()
        except CorralError as error:
            ending = error
        tasks.cancel_scope.cancel()
    return ending


async def _hint(job: SubmittedJob, say: Callable[[str], None]) -> None:
    await anyio.sleep(_HINT_AFTER_S)
    with suppress(CorralError):
        if await job.status() is JobStatus.QUEUED:
            say(_HINT)
