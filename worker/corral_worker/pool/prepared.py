"""A sandbox that is started ahead of its job, and serves that one and no other."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import msgspec

from corral import EffectiveLimits, Job
from corral.result import StartWay
from corral_worker.pool.pause import HELLO, HELLO_OUTPUT, HELLO_WAIT_STATUS, PAUSE
from corral_worker.pool.ways import Failure, Ways
from corral_worker.process.child import ChildProcess
from corral_worker.process.output import Pipe
from corral_worker.process.thread import in_thread, needed_always
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.containers import (
    Containers,
    RefusedError,
    SandboxGoneError,
    SandboxLostError,
    Streams,
)
from corral_worker.sandbox.ladder import kill_until_empty
from corral_worker.sandbox.notes import Notes
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.removal import Remains
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.runsc_errors import RunscError
from corral_worker.sandbox.sentry import Sentry
from corral_worker.sandbox.verbs import Run
from corral_worker.sandbox.warm import JOB, WarmStart

_HELLO = "hello"
_LOOK_S = 0.05
_SAID = 200
"""Characters of a panic that go into the log."""
_CALL_WITHIN_S = 10.0
_GIVEN_BACK_WITHIN_S = 30.0
"""Seconds until a job that was cancelled has ended its sandbox: longer than its own bounds."""
_RESULT_FIRST_S = 0.01
"""What is left of a sandbox whose program has ended is removed when the result is on its way."""
_TIDY_WITHIN_S = 4.0
"""Seconds until a sandbox is dead, and ``runsc run`` has tidied up after it."""
_TASKS = 1 << 15
"""Host threads are hardly limited while a sandbox waits: its job's limit comes with the job."""


class NotPreparedError(Exception):
    """Raised if a sandbox could not be made ready, and says why."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What cannot be changed any more once a sandbox runs: what its guest sees of the host."""

    memory_bytes: int
    cpus: float

    @classmethod
    def of(cls, limits: EffectiveLimits) -> Shape:
        """Return the shape that a job with these limits needs."""
        return cls(memory_bytes=limits.memory_bytes, cpus=limits.cpus)


class Prepared:
    """One sandbox in waiting. The task that awaits :meth:`live` owns it, from nothing to nothing.

    Args:
        shape: what the guest sees.
        runsc: the runtime.
        ways: knows how programs are started in it, and learns from it.
        places: where sandboxes are made and removed.
        pause: the image that it waits in.
        start_timeout_s: seconds until it must be ready, and until a job's program must run.
    """

    def __init__(
        self,
        *,
        shape: Shape,
        runsc: Runsc,
        ways: Ways,
        places: Callable[[], AbstractAsyncContextManager[Remains]],
        pause: Path,
        start_timeout_s: float,
    ) -> None:
        self.shape = shape
        self._runsc = runsc
        self._ways = ways
        self._places = places
        self._pause = pause
        self._start_timeout_s = start_timeout_s
        self._start: WarmStart | None = None
        self._sentry: Sentry | None = None
        self._wanted = anyio.Event()
        self._done = anyio.Event()
        self._gone = False
        self._failure = ""
        self._spoken_to = False

    async def live(self, ready: Callable[[], None]) -> None:
        """Boot, see it work, and keep it until it has ended, was used, or is dismissed.

        Nothing of it is left when this returns or raises, also on cancellation.

        Args:
            ready: called once it has run a program.

        Raises:
            NotPreparedError: it was never ready.
        """
        failed: list[Failure] = []
        for way in self._ways.to_try():
            self._failure, self._spoken_to = "it ended before it was ready", False
            # One in which a way has failed is not used any more, not even for another way.
            await self._live_by(way, failed, ready)
            if not self._failure:
                return
            failed.append(Failure(way=way, why=self._failure))
            if self._start is not None or not self._spoken_to:
                # That says nothing about the way.
                raise NotPreparedError(self._failure)
        raise NotPreparedError("; ".join(f"by {failure.way}: {failure.why}" for failure in failed))

    async def _live_by(
        self, way: StartWay, failed: Sequence[Failure], ready: Callable[[], None]
    ) -> None:
        async with self._places() as remains:
            # Nobody waits for that: whoever took it has seen it dead.
            remains.awaited = False
            place = remains.place
            try:
                await in_thread(place.prepare, Job(argv=PAUSE), self._limits(), self._pause)
                # Known for as long as somebody can take the sandbox.
                with Sentry(place.cgroup) as self._sentry:
                    await self._boot(place, way, failed, ready)
            except (CgroupError, RunscError, OSError) as error:
                self._failure = str(error)
            if self._failure:
                book = await in_thread(place.log_book, Notes())
                self._failure = "; ".join((self._failure, *book.errors[-1:], book.panic[:_SAID]))

    async def _boot(
        self, place: Place, way: StartWay, failed: Sequence[Failure], ready: Callable[[], None]
    ) -> None:
        async with (
            self._runsc.run(
                Run(id=place.id, bundle=place.bundle),
                place.logs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as child,
            self._ways.open(way, place.id, place.bundle) as containers,
        ):
            try:
                await self._live(place, child, containers, failed, ready)
            finally:
                self._gone = self._start is not None
                await _end(place, child)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[WarmStart]:
        """Give what runs the one job; when the block has ended, the sandbox is ended and removed.

        Only to be called once, after it was ready. End and removal are not waited for.

        Raises:
            SandboxGoneError: it has ended by itself.
        """
        self.wake()
        # No turn of the event loop before the job's own: from here on nobody else looks after it.
        self._wanted.set()
        try:
            if self._gone or self._start is None:
                raise SandboxGoneError("it ended while it waited")
            yield self._start
        finally:
            self._done.set()

    def rest(self) -> None:
        """Have it stand still, where that can be done, until :meth:`wake` or :meth:`taken`.

        Only one that is ready and waits does. It can still be dismissed, and die.
        """
        if self._sentry and not self._wanted.is_set():
            self._sentry.stop()

    def wake(self) -> None:
        """Have it go on, if it stands still."""
        if self._sentry:
            self._sentry.go_on()

    def dismiss(self) -> None:
        """Give up a sandbox that nobody has taken. Returns at once; :meth:`live` ends it."""
        self._done.set()
        self._wanted.set()

    async def _live(
        self,
        place: Place,
        child: ChildProcess,
        containers: Containers,
        failed: Sequence[Failure],
        ready: Callable[[], None],
    ) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_when_ended, child, tasks.cancel_scope)
                self._failure = await self._trouble(place, containers)
                if not self._failure:
                    self._ways.worked(containers.way, failed)
                    self._start = WarmStart(
                        runsc=self._runsc,
                        place=place,
                        child=child,
                        containers=containers,
                        start_timeout_s=self._start_timeout_s,
                    )
                    ready()
                    await self._wanted.wait()
                tasks.cancel_scope.cancel()
            if self._wanted.is_set():
                await self._done.wait()
                await anyio.sleep(_RESULT_FIRST_S)
        finally:
            if self._wanted.is_set():
                # Cancelled together, whoever took it still needs it, to end it.
                with anyio.move_on_after(_GIVEN_BACK_WITHIN_S, shield=True):
                    await self._done.wait()

    async def _trouble(self, place: Place, containers: Containers) -> str:
        """Wait for the sandbox to boot, try it, and return what is wrong with it, if anything."""
        state = self._runsc.state(place.id)
        try:
            with anyio.fail_after(self._start_timeout_s):
                while state.status() != "running":
                    await anyio.sleep(_LOOK_S)
                self._spoken_to = True
                trouble = await self._say_hello(place, containers)
                await containers.create(JOB, within_s=_CALL_WITHIN_S)
                if self._sentry:
                    # Where the host cannot say which process it is, it never rests: no trouble.
                    with suppress(OSError):
                        await in_thread(self._sentry.find)
        except TimeoutError as error:
            return f"it was not ready within its budget: {error}"
        except (RefusedError, SandboxLostError) as error:
            return str(error)
        return trouble

    async def _say_hello(self, place: Place, containers: Containers) -> str:
        """Run a program, exactly as the job's will be, and return what was wrong with that.

        It proves that this runsc can be talked to. And the first process takes gVisor longer
        than any later one, for it starts helpers on the host that it then keeps.
        """
        spec = place.spec(Job(argv=HELLO), self._limits(), self._pause)
        with ExitStack() as files, Pipe(parent="read") as output:
            nothing = os.open(os.devnull, os.O_RDONLY)
            files.callback(os.close, nothing)
            streams = Streams(stdin=nothing, stdout=output.theirs, stderr=output.theirs)
            await containers.create(_HELLO, within_s=_CALL_WITHIN_S)
            await containers.start(_HELLO, spec, streams=streams, within_s=_CALL_WITHIN_S)
            status = await containers.wait(_HELLO, within_s=_CALL_WITHIN_S)
            output.close(output.theirs)
            said = _read_what_is_there(output.ours)
            await containers.destroy(_HELLO, within_s=_CALL_WITHIN_S)
        if (status, said) != (HELLO_WAIT_STATUS, HELLO_OUTPUT):
            return f"its first program ended with {status} and said {said!r}"
        return ""

    def _limits(self) -> EffectiveLimits:
        return EffectiveLimits(
            memory_bytes=self.shape.memory_bytes, cpus=self.shape.cpus, pids=_TASKS
        )


async def _cancel_when_ended(child: ChildProcess, scope: anyio.CancelScope) -> None:
    await child.wait()
    scope.cancel()


async def _end(place: Place, child: ChildProcess) -> None:
    with anyio.move_on_after(_TIDY_WITHIN_S, shield=True), suppress(OSError):
        # Whatever this cannot kill, the removal of the place reports.
        await in_thread(kill_until_empty, place.cgroup, limiter=needed_always())
        await child.wait()


def _read_what_is_there(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2 * len(HELLO_OUTPUT))
    except BlockingIOError:
        return b""
