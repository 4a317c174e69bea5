"""One program in a sandbox that waited, whose containers do what a test tells them to."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace
from support.cold_starts import HOLDINGS, JOB, LIMITS, ROOTFS, SOON_S, Cgroup, Cgroups

from corral import ErrProgramNotFound, ErrSandboxCreationFailed, Outcome
from corral.result import StartWay
from corral_worker.process.capture import Spool
from corral_worker.process.child import child_process
from corral_worker.sandbox.bundle import SandboxSpec
from corral_worker.sandbox.containers import RefusedError, Streams
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop
from corral_worker.sandbox.warm import WarmStart


class Waiting:
    """A sandbox that waits."""

    way: StartWay = "control_socket"

    def __init__(self) -> None:
        self.started = False
        self.says: tuple[bytes, bytes] = (b"", b"")
        self.refuses: RefusedError | None = None

    async def create(self, container: str, *, within_s: float) -> None: ...

    async def start(
        self, container: str, spec: SandboxSpec, *, streams: Streams, within_s: float
    ) -> None:
        self.started = True
        for stream, words in zip((streams.stdout, streams.stderr), self.says, strict=True):
            os.write(stream, words)
            while _unread(stream):
                await anyio.lowlevel.checkpoint()
        # Whoever was asked for its end because of that would be told here.
        await anyio.lowlevel.checkpoint()
        if self.refuses:
            raise self.refuses

    async def wait(self, container: str, *, within_s: float) -> int:
        await anyio.sleep(within_s)
        raise TimeoutError

    def last_words(self, container: str) -> bytes:
        return b""

    async def destroy(self, container: str, *, within_s: float) -> None: ...


def _unread(stream: int) -> bool:
    return fcntl.ioctl(stream, termios.FIONREAD, bytes(4)) != bytes(4)


@asynccontextmanager
async def taken(
    runsc: Runsc, cgroup: Cgroup, runs: Path, waiting: Waiting
) -> AsyncIterator[WarmStart]:
    """Give what runs a job in it."""
    nothing = subprocess.DEVNULL
    with HOLDINGS.hold() as name:
        place = Place(name, runs, Cgroups(cgroup), Spool.new_writers())
        async with child_process(
            ["sleep", "1000"],
            env={"PATH": os.defpath},
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
        ) as child:
            cgroup.pid.write_text(str(child.pid))
            yield WarmStart(
                runsc=runsc, place=place, child=child, containers=waiting, start_timeout_s=SOON_S
            )


async def test_a_host_that_fails_when_limits_are_set_is_a_fault_and_nothing_was_started(
    runsc: Runsc, cgroup: Cgroup, runs: Path
) -> None:
    def no_descriptor() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    cgroup.on_counters = no_descriptor
    waiting = Waiting()

    async with taken(runsc, cgroup, runs, waiting) as start:
        with pytest.raises(ErrSandboxCreationFailed, match="Too many open files") as raised:
            await start.run(JOB, LIMITS, ROOTFS, Stop())

    assert raised.value.retry_safety == "not_started"
    assert not waiting.started


TERSE = replace(LIMITS, output_kill_bytes=1)


@pytest.mark.parametrize("says", [(b"hello\n", b""), (b"", b"hello\n")], ids=["stdout", "stderr"])
async def test_a_program_that_says_too_much_before_it_is_known_to_run_is_killed_for_that(
    runsc: Runsc, cgroup: Cgroup, runs: Path, says: tuple[bytes, bytes]
) -> None:
    waiting = Waiting()
    waiting.says = says

    async with taken(runsc, cgroup, runs, waiting) as start:
        report = await start.run(JOB, TERSE, ROOTFS, Stop())

    assert report.ending == Ending(outcome=Outcome.OUTPUT_EXCEEDED, signal=9)
    assert (report.stdout.data, report.stderr.data) == says


async def test_what_is_said_of_a_program_that_is_missing_is_not_too_much_of_its_own(
    runsc: Runsc, cgroup: Cgroup, runs: Path
) -> None:
    waiting = Waiting()
    waiting.says = (b"", b"running container: creating process: no such file or directory\n")
    waiting.refuses = RefusedError("run", "failed to load /x: no such file or directory")

    async with taken(runsc, cgroup, runs, waiting) as start:
        report = await start.run(JOB, TERSE, ROOTFS, Stop())

    assert isinstance(report.ending, ErrProgramNotFound)
    assert report.stderr.data == b""
