"""The life of one sandbox, from nothing to nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc

from corral import (
    EffectiveLimits,
    ErrGVisorNotAvailable,
    ErrSandboxCreationFailed,
    HostLimits,
    Job,
)
from corral_worker.process.capture import Spool
from corral_worker.process.child import ChildProcess
from corral_worker.process.output import Pipe
from corral_worker.process.reading import Reading
from corral_worker.process.thread import in_thread
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.enforce import enforcing
from corral_worker.sandbox.flood import OutputMeter
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.host_failure import host_failures
from corral_worker.sandbox.ladder import Ladder, Life
from corral_worker.sandbox.pipes import Pipes
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.removal import Remains, Removal, remove
from corral_worker.sandbox.report import Report, report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.runsc_errors import RunscError
from corral_worker.sandbox.stop import Stop
from corral_worker.sandbox.timing import Strain, read_strain
from corral_worker.sandbox.verbs import Run
from corral_worker.sandbox.watch import Watch

_DRAIN_WITHIN_S = 1.0
"""Seconds to read what is left in the pipes once the sandbox is dead."""
_TEARDOWN_WITHIN_S = 20.0
"""Longer than all rungs together: the last bound on any way out."""
_GULP_S = 0.25
"""While a sandbox boots some sixty notes come one by one: to read each by itself would cost more
than all else. They bear their times, so that nothing is lost but the knowledge of it meanwhile."""
_GULPS = 4
"""In the time of a wall limit, lest a short one be known too late."""
_LEAST_GULP_S = 0.02
"""No wall limit is worth a worker that does nothing but look."""


class Sandboxes(Protocol):
    """What runs a program in a sandbox of its own."""

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        """Run a program to its end, and return when its sandbox is dead."""


class ColdStart:
    """Runs each program by ``runsc run``: a sandbox that did not exist before.

    Args:
        runsc: the runtime.
        cgroups: where the sandboxes' cgroups are made.
        runs: directory for the bundles, used by no other worker.
        holdings: gives the sandboxes their names; shared with whatever else starts some.
        start_timeout_s: seconds a sandbox may take until its program runs.
        removal: removes sandboxes that are dead while their results are on their way already;
            without it they are removed first.
    """

    def __init__(
        self,
        *,
        runsc: Runsc,
        cgroups: CgroupHost,
        runs: Path,
        holdings: Holdings,
        start_timeout_s: float,
        removal: Removal | None = None,
    ) -> None:
        self._runsc = runsc
        self._cgroups = cgroups
        self._runs = runs
        self._holdings = holdings
        self._start_timeout_s = start_timeout_s
        self._removal = removal
        self._writers = Spool.new_writers()
        self._ladder = Ladder(runsc)

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        """Run a program to its end; its sandbox is dead when this returns.

        The wall limit counts from the program's start. ``stop`` ends it
        earlier. On cancellation the sandbox is killed and removed, in bounded
        time, before this raises.

        Raises:
            ErrSandboxCreationFailed: bundle or cgroup could not be made, or the
                host failed before the program ran.
            ErrSandboxExecutionFailed: the host failed while it ran.
            ErrGVisorNotAvailable: runsc is gone, or is another one.
        """
        async with self.place() as remains:
            place = remains.place
            life = Life(limits, self._runsc.state(place.id), place.spool)
            with life.stdout, life.stderr:
                host_limits, before = await self._make(place, job, limits, rootfs)
                with host_failures(life):
                    await self._live(place, job, limits, life, stop)
                    book, counters, streams, after, alive = await in_thread(
                        lambda: (
                            place.log_book(life.notes),
                            place.counters(),
                            (life.stdout.captured(), life.stderr.captured()),
                            read_strain(time.monotonic()),
                            place.cgroup.processes(),
                        ),
                        limiter=place.spool.writers if life.spools else None,
                    )
            remains.awaited = bool(alive)
            remains.to_delete = life.is_to_be_deleted
        return report(
            place.id,
            life,
            stop,
            book,
            streams=streams,
            strain=(before, after),
            counters=counters,
            host_limits=host_limits,
            start="cold",
            start_way="command_line",
            leftovers=remains.left,
        )

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Remains]:
        """Give a place for a sandbox, which is removed, then or later, when the block has ended."""
        with ExitStack() as held:
            sandbox_id = held.enter_context(self._holdings.hold())
            remains = Remains(Place(sandbox_id, self._runs, self._cgroups, self._writers))
            try:
                yield remains
            finally:
                if self._removal is None or remains.awaited:
                    await remove(self._runsc, [remains])
                else:
                    self._removal.add(remains, held.pop_all())

    async def _make(
        self, place: Place, job: Job, limits: EffectiveLimits, rootfs: Path
    ) -> tuple[HostLimits, Strain | None]:
        try:
            return await in_thread(
                lambda: (place.make(job, limits, rootfs), read_strain(time.monotonic()))
            )
        except CgroupError as error:
            raise ErrSandboxCreationFailed(
                "the job's limits cannot be enforced on this host", detail=str(error)
            ) from error
        except OSError as error:
            raise ErrSandboxCreationFailed(
                f"the sandbox's bundle cannot be written: {error.strerror}", detail=str(error)
            ) from error

    async def _live(
        self, place: Place, job: Job, limits: EffectiveLimits, life: Life, stop: Stop
    ) -> None:
        async with (
            self._started(place, job) as (child, pipes, notes),
            anyio.create_task_group() as tasks,
        ):
            watch = self._watch(place, limits, life, stop, tasks)
            with Reading(tasks) as reading:
                pipes.listen(reading, life, OutputMeter(limits.output_kill_bytes, stop))
                reading.read(notes, watch.note, pause_s=_gulp_s(limits.wall_s))
                pipes.speak(tasks)
                try:
                    with anyio.CancelScope() as scope, stop.cancelling(scope), watch:
                        life.status = await child.wait()
                        life.ended = time.monotonic()
                finally:
                    reading.hurry()
                    with anyio.move_on_after(_TEARDOWN_WITHIN_S, shield=True):
                        await self._ladder.end(place, child, life, stop)
                tasks.cancel_scope.deadline = anyio.current_time() + _DRAIN_WITHIN_S
                await reading.ended()

    @asynccontextmanager
    async def _started(
        self, place: Place, job: Job
    ) -> AsyncIterator[tuple[ChildProcess, Pipes, int]]:
        """Give the process of a sandbox, its pipes, and the descriptor of its log."""
        async with AsyncExitStack() as stack:
            pipes = stack.enter_context(Pipes(job))
            notes = stack.enter_context(Pipe(parent="read"))
            try:
                child = await stack.enter_async_context(
                    self._runsc.run(
                        Run(id=place.id, bundle=place.bundle),
                        place.logs,
                        stdin=pipes.streams.stdin,
                        stdout=pipes.streams.stdout,
                        stderr=pipes.streams.stderr,
                        notes=notes.theirs,
                    )
                )
            except RunscError as error:
                raise ErrGVisorNotAvailable(
                    "the worker's runsc is gone, or was replaced", detail=error.detail
                ) from error
            pipes.close_theirs()
            notes.close(notes.theirs)
            yield child, pipes, notes.ours

    def _watch(
        self,
        place: Place,
        limits: EffectiveLimits,
        life: Life,
        stop: Stop,
        tasks: anyio.abc.TaskGroup,
    ) -> Watch:
        def enforced(since: float) -> AbstractContextManager[None]:
            control = ControlSocket(self._runsc.control_socket(place.id))
            return enforcing(limits, place.counters, control, stop, tasks, since=since)

        return Watch(life, stop, start_timeout_s=self._start_timeout_s, enforcing=enforced)


def _gulp_s(wall_s: float) -> float:
    return min(_GULP_S, max(_LEAST_GULP_S, wall_s / _GULPS))
