"""Owns the attempts that run, each in a task of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
import anyio.abc
import structlog

from corral import CorralError, Fault, Result
from corral_worker.executor.executor import Attempt
from corral_worker.sandbox.outcome import KillCause
from corral_worker.sandbox.stop import Stop


class Executes(Protocol):
    """What runs one attempt to its end."""

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        """Return how the attempt ended; ``stop`` ends it earlier.

        Raises:
            CorralError: it was rejected, or a fault struck.
        """


class RunningAttempt:
    """An attempt that was handed to the supervisor: wait for its end, or ask for it."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self._stop = Stop()
        self._done = anyio.Event()
        self._ending: Result | CorralError | None = None

    def stop(self, cause: KillCause) -> None:
        """Ask for the end. Returns at once; the first cause counts."""
        self._stop.request(cause)

    async def ended(self) -> Result | CorralError:
        """Wait until the attempt is over, its sandbox gone, and return how it ended.

        Cancelling the wait leaves the attempt running.
        """
        await self._done.wait()
        return self._ending or Fault("the attempt ended without a trace", retry_safety="unknown")

    async def run(self, executor: Executes, slots: anyio.Semaphore) -> None:
        """Wait for a slot, then run to the end. Never raises an :class:`Exception`."""
        try:
            async with _slot(slots, self._stop):
                self._ending = await executor.execute(self.attempt, self._stop)
        except CorralError as error:
            self._ending = error
        except Exception as error:  # noqa: BLE001 - one job's trouble is not the next one's
            structlog.get_logger().exception("job.crashed", job_id=self.attempt.job_id)
            self._ending = Fault(
                f"the worker failed with {type(error).__name__}: see its log for job"
                f" {self.attempt.job_id}",
                retry_safety="unknown",
            )
        finally:
            self._done.set()


@asynccontextmanager
async def _slot(slots: anyio.Semaphore, stop: Stop) -> AsyncIterator[None]:
    """Hold a slot for the block; a stop ends the wait, for then none is needed."""
    held = await _acquire(slots, stop)
    try:
        yield
    finally:
        if held:
            slots.release()


async def _acquire(slots: anyio.Semaphore, stop: Stop) -> bool:
    try:
        slots.acquire_nowait()
    except anyio.WouldBlock:
        pass
    else:
        return True
    held = False
    async with anyio.create_task_group() as tasks:

        async def give_up() -> None:
            await stop.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(give_up)
        await slots.acquire()
        held = True
        tasks.cancel_scope.cancel()
    return held


class Supervisor:
    """Keeps the sandboxes' lives apart from the tasks that asked for them.

    A queue library may cancel its tasks natively, twice, and at any await: no
    shield of anyio's holds against that. So an attempt runs in a task that only
    the supervisor can cancel, and others wait for it or ask it to stop.
    """

    def __init__(self, executor: Executes, tasks: anyio.abc.TaskGroup, *, slots: int) -> None:
        self._executor = executor
        self._tasks = tasks
        self._slots = anyio.Semaphore(slots)
        self._running: set[RunningAttempt] = set()
        self._idle = anyio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, executor: Executes, *, slots: int) -> AsyncIterator[Supervisor]:
        """Yield a supervisor; at the end, and on cancellation, no sandbox is left."""
        async with anyio.create_task_group() as tasks:
            yield cls(executor, tasks, slots=slots)

    def start(self, attempt: Attempt) -> RunningAttempt:
        """Begin an attempt, as soon as a slot is free."""
        running = RunningAttempt(attempt)
        self._running.add(running)
        self._tasks.start_soon(self._run, running)
        return running

    def stop_all(self, cause: KillCause) -> None:
        """Ask every attempt to end. Returns at once."""
        for running in self._running:
            running.stop(cause)

    async def idle(self) -> None:
        """Wait until no attempt is left."""
        while self._running:
            if self._idle.is_set():
                self._idle = anyio.Event()
            await self._idle.wait()

    async def _run(self, running: RunningAttempt) -> None:
        try:
            await running.run(self._executor, self._slots)
        finally:
            self._running.discard(running)
            self._idle.set()
