"""One program in a sandbox that waited, whose containers do what a test tells them to."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.cold_starts import HOLDINGS, JOB, LIMITS, ROOTFS, SOON_S, Cgroup, Cgroups

from corral import ErrSandboxCreationFailed
from corral.result import StartWay
from corral_worker.process.capture import Spool
from corral_worker.process.child import child_process
from corral_worker.sandbox.bundle import SandboxSpec
from corral_worker.sandbox.containers import Streams
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop
from corral_worker.sandbox.warm import WarmStart


class Waiting:
    """A sandbox that waits."""

    way: StartWay = "control_socket"

    def __init__(self) -> None:
        self.started = False

    async def create(self, container: str, *, within_s: float) -> None: ...

    async def start(
        self, container: str, spec: SandboxSpec, *, streams: Streams, within_s: float
    ) -> None:
        self.started = True

    async def wait(self, container: str, *, within_s: float) -> int:
        return 0

    def last_words(self, container: str) -> bytes:
        return b""

    async def destroy(self, container: str, *, within_s: float) -> None: ...


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
