"""A child process that is always reaped."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
from anyio.lowlevel import RunVar

_REAP_WITHIN_S = 5.0
_LOOK_AGAIN_S = 0.01
_OWNED: RunVar[set[int]] = RunVar("corral_worker.process.child.owned")


class ChildProcess:
    """A child in a session and process group of its own.

    Made by :func:`child_process`, which owns its end.
    """

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        self._process = process
        self._pidfd = pidfd
        self.pid = process.pid

    async def wait(self) -> int:
        """Wait for the end and return the exit code, or minus the signal's number."""
        while True:
            # Not reaped yet: until the group is dead, its number must be nobody else's.
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            ended = os.waitid(os.P_PIDFD, self._pidfd, options)  # noqa: ASYNC222 - WNOHANG
            if ended is not None:
                return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            await anyio.wait_readable(self._pidfd)

    def set_oom_score(self, adjustment: int) -> None:
        """Say how soon the kernel is to kill it for memory: see proc(5). Gone is no error."""
        with suppress(OSError):
            # Every sandbox has that: a file object would cost more than the kernel's part.
            descriptor = os.open(f"/proc/{self.pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, str(adjustment).encode())
            finally:
                os.close(descriptor)

    def kill_group(self) -> None:
        """Send SIGKILL to the child and all of its group; gone already is no error."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def reap(self) -> None:
        """Kill what is left of the group, and wait for the child's end. The last call of all."""
        self.kill_group()
        with anyio.move_on_after(_REAP_WITHIN_S, shield=True):
            try:
                await self.wait()
            except OSError:
                # The kernel tells of ends only as many as it has watches for: epoll(7).
                while self._process.poll() is None:
                    await anyio.sleep(_LOOK_AGAIN_S)
        self._process.poll()
        os.close(self._pidfd)
        owned_pids().discard(self.pid)


def owned_pids() -> set[int]:
    """Return the pids of all children that this run of the event loop has yet to reap."""
    owned = _OWNED.get(None)
    if owned is None:
        owned = set()
        _OWNED.set(owned)
    return owned


@asynccontextmanager
async def child_process(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: int,
    stdout: int,
    stderr: int,
    cwd: Path = Path("/"),
    pass_fds: Sequence[int] = (),
    oom_score_adj: int | None = None,
    scheduling: int = os.SCHED_OTHER,
) -> AsyncIterator[ChildProcess]:
    """Start a child and make sure that it has ended when the block has.

    Nothing but the descriptors and ``env`` reaches the child. On every
    way out, cancellation included, its group is killed and it is reaped.

    Args:
        argv: the program and its arguments; no shell is involved.
        env: its whole environment.
        stdin: descriptor, or a constant of :mod:`subprocess`.
        stdout: the same.
        stderr: the same.
        cwd: directory it starts in.
        pass_fds: further descriptors it gets, under the same numbers.
        oom_score_adj: see proc(5); that of the worker if left out.
        scheduling: policy that it and all of its own children have, of those that need no
            privilege: see sched(7). A worker that has another one than usual passes on its own.

    Raises:
        OSError: the program cannot be started.
    """
    with _scheduled(scheduling):
        process = subprocess.Popen(  # noqa: ASYNC220 - vfork and exec take about a millisecond,
            # and a spawn that cannot be interrupted half-way cannot leave an unowned child
            list(argv),
            env=dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            close_fds=True,
            pass_fds=pass_fds,
            umask=0o022,
            start_new_session=True,
        )
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
    child = ChildProcess(process, pidfd)
    owned_pids().add(child.pid)
    try:
        if oom_score_adj is not None:
            child.set_oom_score(oom_score_adj)
        yield child
    finally:
        await child.reap()


@contextmanager
def _scheduled(policy: int) -> Iterator[None]:
    """Have this thread, and what it forks in the block, scheduled by a policy."""
    # Not set when the child is there: threads that it had started by then would lack it.
    own = os.sched_getscheduler(0)
    changes = own == os.SCHED_OTHER != policy
    if changes:
        # What confines the worker need not allow it: the child is no worse off for it.
        with suppress(OSError):
            os.sched_setscheduler(0, policy, os.sched_param(0))
    try:
        yield
    finally:
        if changes:
            with suppress(OSError):
                os.sched_setscheduler(0, own, os.sched_param(0))
