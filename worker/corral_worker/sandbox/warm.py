"""One program in a sandbox that was started ahead of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import msgspec

from corral import EffectiveLimits, ErrSandboxCreationFailed, HostLimits, Job
from corral_worker.process.capture import Captured
from corral_worker.process.child import ChildProcess
from corral_worker.process.reading import Reading
from corral_worker.process.thread import in_thread, needed_always
from corral_worker.sandbox.bundle import SandboxSpec
from corral_worker.sandbox.cgroup import CgroupError, Counters
from corral_worker.sandbox.cgroup_processes import wait_until_empty
from corral_worker.sandbox.containers import (
    Containers,
    RefusedError,
    SandboxGoneError,
    SandboxLostError,
)
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.enforce import enforcing
from corral_worker.sandbox.flood import OutputMeter
from corral_worker.sandbox.host_failure import host_failures
from corral_worker.sandbox.ladder import Ladder, Life, kill_until_empty
from corral_worker.sandbox.notes import Notes
from corral_worker.sandbox.pipes import Pipes
from corral_worker.sandbox.place import LogBook, Place
from corral_worker.sandbox.report import Report, report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop
from corral_worker.sandbox.timing import Strain, read_strain

JOB = "job"
"""Id of the job's container: in its own sandbox, so it need not differ from others."""

_AFTER_WALL_S = 60.0
"""Seconds beyond its wall limit until a program's end is no longer waited for."""
_DRAIN_WITHIN_S = 1.0
_END_WITHIN_S = 20.0
_DYING_S = 0.01
"""Seconds until what was killed is killed again: what was being forked can have escaped."""


class WarmStart:
    """Runs one program in a sandbox that runs already, and ends the sandbox with it.

    The program gets a container of its own beside the one that waits: its own image,
    mounts, process ids, limits and identity. It sees what it would see after a cold start.

    Args:
        runsc: the runtime.
        place: where the sandbox is; its owner removes it, later.
        child: the ``runsc run`` that holds it.
        containers: starts programs in it; :data:`JOB` is created already.
        start_timeout_s: seconds until the program must run.
    """

    def __init__(
        self,
        *,
        runsc: Runsc,
        place: Place,
        child: ChildProcess,
        containers: Containers,
        start_timeout_s: float,
    ) -> None:
        self._runsc = runsc
        self._place = place
        self._child = child
        self._containers = containers
        self._start_timeout_s = start_timeout_s
        self._control = ControlSocket(runsc.control_socket(place.id))
        self._wait_status: int | None = None
        self._trouble: tuple[str, ...] = ()
        self._gone = False
        self._dead = False
        self._strain: Strain | None = None
        self._last: tuple[Counters, Strain | None] | None = None

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        """Run a program to its end, and return when the sandbox is dead. Only to be called once.

        The wall limit counts from the program's start. ``stop`` ends it earlier. On
        cancellation the sandbox is killed, in bounded time, before this raises.

        Raises:
            ErrSandboxCreationFailed: the job's limits cannot be enforced, or the host
                failed before the program ran.
            ErrSandboxExecutionFailed: the host failed while it ran.
            SandboxGoneError: the sandbox is not there any more; nothing was started.
        """
        place = self._place
        life = Life(limits, self._runsc.state(place.id), place.spool)
        host_limits, before = await self._hand_over(limits)

        def counters() -> Counters:
            return _since(before, place.counters())

        with life.stdout, life.stderr, host_failures(life):
            await self._live(job, limits, rootfs, life, counters, stop)
            if self._gone:
                raise SandboxGoneError(*self._trouble)
            last = self._last
            if last is None:
                last = await in_thread(self._last_look, life, counters, limiter=needed_always())
            used, after = last
            book, streams = await self._evidence(life)
        return report(
            place.id,
            life,
            stop,
            book,
            streams=streams,
            strain=(self._strain, after),
            counters=used,
            host_limits=host_limits,
            start="warm",
            start_way=self._containers.way,
            leftovers=() if self._dead else (f"processes of {place.id}",),
        )

    async def _live(  # noqa: PLR0917 - the whole of what is run, and where it is noted
        self,
        job: Job,
        limits: EffectiveLimits,
        rootfs: Path,
        life: Life,
        counters: Callable[[], Counters],
        stop: Stop,
    ) -> None:
        with Pipes(job) as pipes:
            async with anyio.create_task_group() as tasks:
                with Reading(tasks) as reading:
                    meter = OutputMeter(limits.output_kill_bytes, stop, begun=False)
                    pipes.listen(reading, life, meter)
                    try:
                        with anyio.CancelScope() as scope, stop.cancelling(scope):
                            if stop.cause is None:
                                spec = self._place.spec(job, limits, rootfs)
                                await self._start(spec, pipes, life, stop)
                            if life.running is not None:
                                meter.begin()
                                pipes.speak(tasks)
                                with enforcing(
                                    limits, counters, self._control, stop, tasks, since=life.running
                                ):
                                    await self._wait(limits, life)
                    finally:
                        pipes.close_theirs()
                        with anyio.move_on_after(_END_WITHIN_S, shield=True):
                            await self._end(life, counters, stop)
                    reading.hurry()
                    tasks.cancel_scope.deadline = anyio.current_time() + _DRAIN_WITHIN_S
                    await reading.ended()

    async def _hand_over(self, limits: EffectiveLimits) -> tuple[HostLimits, Counters]:
        def hand_over() -> tuple[HostLimits, Counters]:
            self._strain = read_strain(time.monotonic())
            return self._place.hand_over(limits)

        try:
            return await in_thread(hand_over)
        except CgroupError as error:
            raise ErrSandboxCreationFailed(
                "the job's limits cannot be enforced on this host", detail=str(error)
            ) from error
        except OSError as error:
            raise ErrSandboxCreationFailed(
                f"the host failed while the job's limits were being set: {error.strerror}",
                detail=str(error),
            ) from error

    async def _start(self, spec: SandboxSpec, pipes: Pipes, life: Life, stop: Stop) -> None:
        """Start the program; ``life`` notes whether it runs."""
        # Whatever comes in between now: it may have begun, unseen.
        life.created = True
        try:
            await self._containers.start(
                JOB, spec, streams=pipes.streams, within_s=self._start_timeout_s
            )
        except TimeoutError:
            stop.request("start_timeout")
        except RefusedError as error:
            # As `runsc run` words it.
            self._trouble = (f"starting sandbox: {error.words}",)
            life.created = False
            life.ended = time.monotonic()
        except SandboxLostError as error:
            self._trouble = (str(error),)
            self._gone = isinstance(error, SandboxGoneError)
            life.ended = time.monotonic()
        else:
            life.running = time.monotonic()
            pipes.close_theirs()

    async def _wait(self, limits: EffectiveLimits, life: Life) -> None:
        try:
            self._wait_status = await self._containers.wait(
                JOB, within_s=limits.wall_s + _AFTER_WALL_S
            )
        except (RefusedError, SandboxLostError, TimeoutError) as error:
            self._trouble = (str(error),)
        life.ended = time.monotonic()

    async def _end(self, life: Life, counters: Callable[[], Counters], stop: Stop) -> None:
        if life.ended is None:
            created, running = life.created, life.running
            await Ladder(self._runsc).end(self._place, self._child, life, stop)
            # What the ladder sees running is the program that waited.
            life.created, life.running = created, running
            self._dead = life.dead_at is not None
        self._last = await in_thread(self._last_look, life, counters, limiter=needed_always())

    def _last_look(
        self, life: Life, counters: Callable[[], Counters]
    ) -> tuple[Counters, Strain | None]:
        """Make sure that the sandbox is dead, and return what it used."""
        cgroup = self._place.cgroup
        if life.killed is None:
            with suppress(OSError):
                cgroup.kill()
        # A sandbox of which nothing runs any more takes the kernel some milliseconds to take down.
        used = counters(), read_strain(time.monotonic())
        if life.killed is None:
            self._dead = wait_until_empty(cgroup, _DYING_S) or kill_until_empty(cgroup)
        return used

    async def _evidence(self, life: Life) -> tuple[LogBook, tuple[Captured, Captured]]:
        def read() -> tuple[LogBook, tuple[Captured, Captured]]:
            streams = life.stdout.captured(), life.stderr.captured()
            if self._wait_status is None:
                streams[1].cut(self._containers.last_words(JOB))
            return self._log_book(), streams

        if life.spools:
            return await in_thread(read, limiter=self._place.spool.writers)
        return await in_thread(read) if self._wait_status is None else read()

    def _log_book(self) -> LogBook:
        """Return the evidence: the program's own end, or what is known of the sandbox's."""
        if self._wait_status is not None:
            return LogBook(
                errors=(), panic="", wait_status=self._wait_status, begun=True, run_s=0.0
            )
        book = self._place.log_book(Notes())
        return LogBook(
            errors=(*book.errors, *self._trouble),
            panic=book.panic,
            wait_status=None,
            begun=False,
            run_s=0.0,
        )


def _since(before: Counters, now: Counters) -> Counters:
    return msgspec.structs.replace(
        now, cpu_s=now.cpu_s - before.cpu_s, oom_kills=now.oom_kills - before.oom_kills
    )
