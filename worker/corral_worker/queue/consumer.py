"""Serves all tenants' queues: claims jobs, fair and leased, and hands them out."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterable

import anyio
import anyio.abc
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from corral_worker.admission.gate import Gate
from corral_worker.queue.claims import Batch, Claims
from corral_worker.queue.commits import Commits, Keep
from corral_worker.queue.control import ControlChannel
from corral_worker.queue.leases import Lease, Leases
from corral_worker.queue.service import Executes, JobService
from corral_worker.queue.starts import Starts
from corral_worker.queue.sweeper import Sweeper
from corral_worker.queue.trouble import reason

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_SETTLE_WITHIN_S = 10.0


def worker_name() -> str:
    """Return a name for this process that no other worker ever has."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:40]
    return f"{host}-{secrets.token_hex(5)}"


class Consumer:
    """Takes as many jobs as there are free slots, and keeps their leases.

    Redis may go away and come back: jobs run on until their leases near their
    end, and claiming begins again by itself.

    Args:
        redis: where the queues are.
        executor: runs the attempts.
        tenants: tenants whose queues are served though no client has noted them.
        slots: most jobs held at one time.
        lease_s: seconds after which the jobs of a dead worker are another's.
        most_lost: lost leases after which a job is given up.
        keep: how long and how many results are kept.
        worker: the worker's name, one of a kind.
        gate: claims wait until it is open.
    """

    def __init__(
        self,
        *,
        redis: Redis,
        executor: Executes,
        tenants: Iterable[str],
        slots: int,
        lease_s: float = 10.0,
        most_lost: int = 3,
        keep: Keep | None = None,
        worker: str | None = None,
        gate: Gate | None = None,
    ) -> None:
        keep = keep or Keep()
        self.worker = worker or worker_name()
        self._tenants = frozenset(tenants)
        self._slots = slots
        self._gate = gate or Gate()
        # By halves: Redis looks for the second while the first is being started.
        self._at_once = max(1, slots // 2)
        self._claims = Claims(redis, worker=self.worker, lease_s=lease_s, most_lost=most_lost)
        self._leases = Leases(redis, lease_s=lease_s)
        self._starts = Starts(redis)
        self._commits = Commits(redis, keep=keep, lease_s=lease_s)
        self._sweeper = Sweeper(redis, worker=self.worker, keep=keep, gate=self._gate)
        self._control = ControlChannel(redis, worker=self.worker, cancel=self._leases.cancel)
        self._service = JobService(executor=executor, starts=self._starts, commits=self._commits)
        self._draining = False
        self._claiming = anyio.CancelScope()
        self._waiting = anyio.CancelScope()
        self._claimed_last = anyio.Event()
        self._freed = anyio.Event()
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Serve until cancelled. An error of Redis makes it wait and try again."""
        async with anyio.create_task_group() as tasks:
            for part in (
                self._leases.keep,
                self._leases.guard,
                self._starts.run,
                self._commits.run,
                self._control.run,
                self._sweeper.run,
            ):
                tasks.start_soon(part)
            with self._claiming:
                await self._serve(tasks)
            self._claimed_last.set()
            await anyio.sleep_forever()

    async def drain(self, grace_s: float, *, hurry: anyio.Event | None = None) -> None:
        """Take no more jobs, and wait for those that run.

        What had not begun after ``grace_s`` seconds goes back to its queue as
        if it had never been taken. A program that has begun is stopped, and
        that counts as an attempt: its job goes back if it allows another one,
        else it ends with :class:`corral.ErrWorkerLost`. Returns when Redis
        knows how each ended.

        Args:
            grace_s: seconds.
            hurry: ends them when it is set.
        """
        self._draining = True
        self._waiting.cancel()
        self._free()
        # A claim on its way is waited for: cut off, its jobs would be nobody's for a lease.
        with anyio.move_on_after(_SETTLE_WITHIN_S):
            await self._claimed_last.wait()
        self._claiming.cancel()
        with anyio.move_on_after(grace_s):
            await self._idle_or(hurry or anyio.Event())
        self._leases.stop_all("shutdown")
        self._commits.hurry()
        # No deadline: sandboxes end within the executor's own, commits within a lease.
        await self._idle()
        try:
            with anyio.move_on_after(_SETTLE_WITHIN_S):
                await self._sweeper.leave()
        except (RedisError, OSError) as error:
            self._log.warning("queue.unreachable", error=reason(error))

    async def _idle(self) -> None:
        while len(self._leases):
            await self._until_freed()

    async def _idle_or(self, hurry: anyio.Event) -> None:
        async with anyio.create_task_group() as tasks:

            async def hurried() -> None:
                await hurry.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(hurried)
            await self._idle()
            tasks.cancel_scope.cancel()

    async def _serve(self, tasks: anyio.abc.TaskGroup) -> None:
        pause = _FIRST_PAUSE_S
        registered = False
        while not self._draining:
            try:
                if not registered:
                    await self._sweeper.register(self._tenants)
                    registered = True
                await self._serve_once(tasks)
                pause = _FIRST_PAUSE_S
            except (RedisError, OSError) as error:
                self._log.warning("queue.interrupted", error=reason(error))
                # Another server may have taken over that was never told.
                registered = False
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _serve_once(self, tasks: anyio.abc.TaskGroup) -> None:
        free = self._slots - len(self._leases)
        if free <= 0:
            await self._until_freed()
            return
        with anyio.CancelScope() as self._waiting:
            await self._gate.opened()
        if self._draining:
            return
        most = min(free, self._at_once)
        batch: Batch = await self._claims.take(most)
        for claim in batch.claims:
            lease = self._leases.hold(claim, asked_at=batch.asked_at)
            if self._gate.short_of or self._draining:
                # That came while they were being claimed: back with them, as if it had not been.
                lease.stop.request("shutdown")
            tasks.start_soon(self._serve_job, lease)
        if len(batch.claims) < most and not self._draining:
            # There was no more: what comes now comes with a hint.
            with anyio.CancelScope() as self._waiting:
                await self._claims.wait(batch.next_due_s)

    async def _serve_job(self, lease: Lease) -> None:
        try:
            await self._service.serve(lease)
        finally:
            self._leases.drop(lease)
            self._free()

    def _free(self) -> None:
        self._freed.set()

    async def _until_freed(self) -> None:
        if self._freed.is_set():
            self._freed = anyio.Event()
        await self._freed.wait()
