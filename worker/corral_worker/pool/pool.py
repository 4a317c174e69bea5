"""Keeps sandboxes ready, and gives each to one job."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
import anyio.abc
import msgspec
import structlog

from corral import EffectiveLimits, Job
from corral_worker.admission.decision import Shortage
from corral_worker.admission.gate import Gate
from corral_worker.pool.idleness import Idleness
from corral_worker.pool.prepared import NotPreparedError, Prepared, Shape
from corral_worker.pool.sizing import Demand, next_ones, wanted
from corral_worker.sandbox.containers import SandboxGoneError
from corral_worker.sandbox.lifecycle import Sandboxes
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

SANDBOX_BYTES = 20 * 1024 * 1024
"""What one waiting sandbox and its runsc take of the host's memory: 9 to 13 MiB measured."""

_LOOK_AGAIN_S = 1.0
_SOON_S = 0.2
_RESULT_FIRST_S = 0.01
"""Until what has changed is looked at: to make a sandbox would hold up the result of the last."""
_OLD_S = 600.0
"""Seconds after which a sandbox that nobody wanted is replaced."""
_RETRY_S = 60.0
"""Seconds until it is tried again after one could not be made, or memory was short."""
_OF_MEMORY: frozenset[Shortage] = frozenset({"memory", "memory_pressure"})
"""Shortages that sandboxes which wait are a part of."""
_IDLE_PROCESSORS = 0.5
"""With less than this idle, making one would take from the jobs that run."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What the pool may take of the host."""

    sandboxes: int
    """How many may wait, or be on their way to that."""
    slots: int
    """How many jobs can run at one time: with all of them taken, none is made ready."""


class _Member(msgspec.Struct, kw_only=True, eq=False):
    prepared: Prepared
    born: float
    state: Literal["starting", "ready", "taken", "ending"] = "starting"


class Pool:
    """Runs programs in sandboxes that are ready, and by a cold start where there is none.

    Each sandbox is used once. Made by :meth:`open`, whose block owns all that is running.

    Args:
        cold: runs what no sandbox is ready for.
        prepare: makes one that is not started yet.
        runsc: once it was replaced, nothing is kept ready any more.
        budget: what may be taken of the host.
        gate: while it is closed none is made; for want of memory those that wait are given up.
        tasks: where the sandboxes live.
        clock: monotonic seconds.
        idle_processors: how many processors of the host nobody uses.
    """

    def __init__(
        self,
        *,
        cold: Sandboxes,
        prepare: Callable[[Shape], Prepared],
        runsc: Runsc,
        budget: Budget,
        gate: Gate,
        tasks: anyio.abc.TaskGroup,
        clock: Callable[[], float] = time.monotonic,
        idle_processors: Callable[[], float],
    ) -> None:
        self._cold = cold
        self._prepare = prepare
        self._runsc = runsc
        self._budget = budget
        self._gate = gate
        self._tasks = tasks
        self._clock = clock
        self._idle_processors = idle_processors
        self._demand = Demand()
        self._members: list[_Member] = []
        self._running = 0
        self._changed = anyio.Event()
        self._retry_at: dict[Shape, float] = {}
        self._log = structlog.get_logger()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        cold: Sandboxes,
        prepare: Callable[[Shape], Prepared],
        runsc: Runsc,
        budget: Budget,
        gate: Gate,
        expected: EffectiveLimits,
    ) -> AsyncIterator[Pool]:
        """Yield a pool; when the block has ended, no sandbox of it is left.

        Args:
            cold: as for the class.
            prepare: the same.
            runsc: the same.
            budget: the same.
            gate: the same.
            expected: limits of the jobs to be ready for before the first one came.
        """
        async with anyio.create_task_group() as tasks:
            pool = cls(
                cold=cold,
                prepare=prepare,
                runsc=runsc,
                budget=budget,
                gate=gate,
                tasks=tasks,
                idle_processors=Idleness().processors,
            )
            pool._demand.note(Shape.of(expected), pool._clock())
            tasks.start_soon(pool.tend)
            yield pool
            tasks.cancel_scope.cancel()

    @property
    def waiting(self) -> int:
        """How many sandboxes are ready for a job at this moment."""
        return sum(member.state == "ready" for member in self._members)

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        """Run a program to its end, in a sandbox that is ready if there is one.

        All else is as in :meth:`corral_worker.sandbox.lifecycle.ColdStart.run`.
        """
        shape = Shape.of(limits)
        self._demand.note(shape, self._clock())
        self._running += 1
        member = self._take(shape)
        try:
            if member is not None:
                try:
                    async with member.prepared.taken() as warm:
                        return await warm.run(job, limits, rootfs, stop)
                except SandboxGoneError as error:
                    self._log.warning("pool.sandbox_gone", detail=str(error))
            return await self._cold.run(job, limits, rootfs, stop)
        finally:
            self._running -= 1
            if member is not None:
                member.state = "ending"
                self._changed.set()

    def _take(self, shape: Shape) -> _Member | None:
        for member in self._members:
            if member.state == "ready" and member.prepared.shape == shape:
                if not self._runsc.is_same():
                    return None
                member.state = "taken"
                return member
        return None

    async def tend(self) -> None:
        """Make, replace and give back sandboxes until cancelled."""
        while True:
            want = self._wanted()
            self._drop_what_nobody_wants(want)
            self._let_rest()
            stock = self._stock()
            missing = [
                shape
                for shape in want
                if stock[shape] < want[shape] and self._retry_at.get(shape, 0.0) <= self._clock()
            ]
            if missing and self._has_time():
                self._start(missing[0])
            # With all slots taken there is nothing to be done about it soon.
            soon = missing and self._running < self._budget.slots
            with anyio.move_on_after(_SOON_S if soon else _LOOK_AGAIN_S):
                await self._changed.wait()
                await anyio.sleep(_RESULT_FIRST_S)
            self._changed = anyio.Event()

    def _wanted(self) -> dict[Shape, int]:
        if not self._runsc.is_same():
            # The worker takes no more jobs, and what would be made would not be what it was.
            return {}
        want = wanted(self._demand.bursts(self._clock()), self._budget.sandboxes)
        if self._gate.short_of & _OF_MEMORY:
            # Not at once again when it is there: it might be theirs.
            for shape in want:
                self._put_off(shape)
            return {}
        return want

    def _stock(self) -> Counter[Shape]:
        return Counter(
            member.prepared.shape
            for member in self._members
            if member.state in {"starting", "ready"}
        )

    def _has_time(self) -> bool:
        """Return whether to make another one now: one after the other, and never in a rush.

        With no job running there is none to take anything from, whatever else the host does.
        """
        states = Counter(member.state for member in self._members)
        return (
            not self._gate.short_of
            and states["starting"] == 0
            and states["ending"] < self._budget.sandboxes
            and self._running < self._budget.slots
            and (self._running == 0 or self._idle_processors() >= _IDLE_PROCESSORS)
        )

    def _drop_what_nobody_wants(self, want: Mapping[Shape, int]) -> None:
        stock = self._stock()
        now = self._clock()
        for member in self._members:
            shape = member.prepared.shape
            if stock[shape] > want.get(shape, 0) or now - member.born > _OLD_S:
                stock[shape] -= self._dismiss(member)

    def _dismiss(self, member: _Member) -> bool:
        """Let a member go, and return whether it waited: what is on its way comes first."""
        if member.state != "ready":
            return False
        member.state = "ending"
        member.prepared.dismiss()
        return True

    def _let_rest(self) -> None:
        """Have all that wait stand still, but for the next one of each shape.

        Not at once when one is taken, for its job would feel it; when the job has ended, or at the
        next look. Whichever is taken until then wakes by itself.
        """
        ready = [member.prepared for member in self._members if member.state == "ready"]
        awake = next_ones([prepared.shape for prepared in ready])
        for place, prepared in enumerate(ready):
            if place in awake:
                prepared.wake()
            else:
                prepared.rest()

    def _put_off(self, shape: Shape) -> None:
        now = self._clock()
        # Jobs choose the shapes: what is over is not kept.
        self._retry_at = {other: at for other, at in self._retry_at.items() if at > now}
        self._retry_at[shape] = now + _RETRY_S

    def _start(self, shape: Shape) -> None:
        member = _Member(prepared=self._prepare(shape), born=self._clock())
        self._members.append(member)
        self._tasks.start_soon(self._live, member)

    async def _live(self, member: _Member) -> None:
        def ready() -> None:
            member.state = "ready"
            self._changed.set()

        try:
            await member.prepared.live(ready)
        except Exception as error:  # noqa: BLE001 - without a pool the worker still works
            self._put_off(member.prepared.shape)
            self._log.error(
                "pool.not_prepared",
                detail=str(error),
                exc_info=not isinstance(error, NotPreparedError),
                retry_in_s=_RETRY_S,
            )
        finally:
            self._members.remove(member)
            self._changed.set()
