"""A host that starts no more threads and processes: told truly, survived, and nothing is left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from support.faults import DONE, HELLO, LIMITS, assert_told_truly, ending_of
from support.on_host import running
from support.waiting import Prepare, ready

from corral import EffectiveLimits, ErrSandboxCreationFailed, Job, Outcome
from corral_worker.admission.tasks import TaskRoom
from corral_worker.process.reaping import reaping
from corral_worker.sandbox.cgroup import remove_below
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.containers import SandboxGoneError
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

SLEEPER = Job(argv=("sh", "-c", "echo begun; sleep 1000"))


class Tasks:
    """A limit of the tasks that this process, and what it starts, can have."""

    def __init__(self, cgroup: Path) -> None:
        self._cgroup = cgroup

    def leave(self, left: int) -> None:
        now = int((self._cgroup / "pids.current").read_text())
        (self._cgroup / "pids.max").write_text(str(now + left))


@pytest.fixture
def tasks(cgroups: CgroupHost) -> Iterator[Tasks]:
    with limited(cgroups) as tasks:
        yield tasks


@contextmanager
def limited(cgroups: CgroupHost) -> Iterator[Tasks]:
    """Have this process in a cgroup of its own, for the block."""
    mount = cgroups._unified if cgroups.version == 2 else cgroups._hierarchies["pids"]
    assert mount is not None
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    kind = "::" if cgroups.version == 2 else ":pids:"
    before = mount / next(line.partition(kind)[2] for line in lines if kind in line).lstrip("/")
    own = mount / f"corral-test-{os.getpid()}-tasks"
    own.mkdir()
    (own / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield Tasks(own)
    finally:
        (own / "pids.max").write_text("max")
        (before / "cgroup.procs").write_text(str(os.getpid()))
        gives_up = time.monotonic() + 20
        while (own / "cgroup.procs").read_text() and time.monotonic() < gives_up:
            time.sleep(0.01)
        remove_below(own)


@asynccontextmanager
async def without_idle_threads() -> AsyncIterator[None]:
    """Keep all threads busy that this event loop has, where it can have no more."""
    over, none_left = threading.Event(), anyio.Event()

    async def keep_one_busy() -> None:
        try:
            await anyio.to_thread.run_sync(over.wait)
        except RuntimeError:
            none_left.set()

    async with anyio.create_task_group() as group:
        while not none_left.is_set():
            group.start_soon(keep_one_busy)
            await anyio.sleep(0.01)
        try:
            yield
        finally:
            over.set()


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4, 5, 6, 8, 12])
async def test_tasks_may_be_used_up_at_any_moment_of_a_start(
    cold: ColdStart, rootfs: Path, tasks: Tasks, left: int
) -> None:
    async with reaping():
        tasks.leave(left)
        ending = await ending_of(cold, rootfs)

    assert_told_truly(ending)


def test_without_any_thread_a_job_is_a_typed_fault(
    cold: ColdStart, rootfs: Path, tasks: Tasks
) -> None:
    tasks.leave(0)

    # An event loop of its own has no idle thread that could be used.
    ending = anyio.run(ending_of, cold, rootfs)

    assert isinstance(ending, ErrSandboxCreationFailed)
    assert ending.retry_safety == "not_started"
    assert TaskRoom().left() == 0


def test_a_program_that_runs_when_there_are_no_more_threads_is_killed_all_the_same(
    cold: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, tasks: Tasks
) -> None:
    reports: list[Report] = []

    async def cancel() -> None:
        stop = Stop()

        async def run() -> None:
            reports.append(await cold.run(SLEEPER, LIMITS, rootfs, stop))

        async with reaping(), anyio.create_task_group() as group:
            group.start_soon(run)
            await running(runsc, cgroups)
            tasks.leave(0)
            async with without_idle_threads():
                stop.request("cancelled")
                while not reports:
                    await anyio.sleep(0.01)

    anyio.run(cancel)

    (report,) = reports
    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert report.termination is not None
    assert report.termination.verified_dead
    assert report.leftovers == ()


@pytest.mark.parametrize("way", ["control_socket"], indirect=True)
def test_a_sandbox_that_waits_needs_no_more_tasks_of_the_worker(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, tasks: Tasks
) -> None:
    async def warm() -> Report:
        limits = EffectiveLimits(wall_s=50)
        async with reaping(), ready(prepare, limits) as prepared, prepared.taken() as start:
            tasks.leave(0)
            return await start.run(HELLO, limits, rootfs, Stop())

    report = anyio.run(warm)

    assert report.ending == DONE
    assert report.stdout.data == b"hello\n"


@pytest.mark.parametrize("way", ["command_line"], indirect=True)
def test_without_a_task_for_runsc_nothing_is_started_in_a_sandbox_that_waits(
    prepare: Prepare, rootfs: Path, tasks: Tasks
) -> None:
    async def warm() -> None:
        limits = EffectiveLimits(wall_s=50)
        async with reaping(), ready(prepare, limits) as prepared, prepared.taken() as start:
            tasks.leave(0)
            await start.run(HELLO, limits, rootfs, Stop())

    with pytest.RaisesGroup(SandboxGoneError, flatten_subgroups=True):
        anyio.run(warm)
