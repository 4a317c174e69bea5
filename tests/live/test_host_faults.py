"""What becomes of a sandbox when its host fails: always a typed fault, and never a leftover."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from support.faults import DONE, assert_told_truly, ending_of

from corral import (
    EffectiveLimits,
    ErrGVisorNotAvailable,
    ErrSandboxCreationFailed,
    ErrSandboxExecutionFailed,
    Job,
    Outcome,
)
from corral_worker.admission.sampler import HostSampler
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

SLEEPER = Job(argv=("/bin/sh", "-c", "echo begun; sleep 1000"))


# A budget in which no sandbox starts


@pytest.mark.parametrize("budget_s", [0.001, 0.06])
async def test_a_sandbox_that_does_not_start_within_its_budget_is_a_fault(
    runsc: Runsc, cgroups: CgroupHost, directory: Path, rootfs: Path, budget_s: float
) -> None:
    sandboxes = ColdStart(
        runsc=runsc,
        cgroups=cgroups,
        runs=directory / "b",
        holdings=Holdings("0a1b2c3d"),
        start_timeout_s=budget_s,
    )

    ending = await ending_of(sandboxes, rootfs, SLEEPER)

    assert isinstance(ending, ErrSandboxCreationFailed)
    assert "budget" in ending.message


# Files that are not what they should be


async def test_an_image_that_is_damaged_is_a_fault_before_the_program_begins(
    cold: ColdStart, directory: Path
) -> None:
    damaged = directory / "damaged.erofs"
    damaged.write_bytes(bytes(1024**2))

    ending = await ending_of(cold, damaged)
    damaged.unlink()

    assert isinstance(ending, ErrSandboxCreationFailed)
    assert ending.detail


# A sentry that dies


async def test_a_sentry_that_dies_while_the_program_runs_is_a_fault(
    runsc: Runsc, cgroups: CgroupHost, directory: Path, rootfs: Path
) -> None:
    endings: list[Ending | BaseException] = []
    sandboxes = ColdStart(
        runsc=runsc,
        cgroups=cgroups,
        runs=directory / "b",
        holdings=Holdings("0a1b2c3d"),
        start_timeout_s=20,
    )

    async def run() -> None:
        endings.append(await ending_of(sandboxes, rootfs, SLEEPER))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(30):
            while not any(
                runsc.state(file.name.partition("_sandbox:")[0]).status() == "running"
                for file in runsc.root.glob("*.state")
            ):
                await anyio.sleep(0.005)
        # From another hand than ours: nothing that corral knows of.
        for pid in sentries(cgroups):
            os.kill(pid, 9)

    (ending,) = endings
    assert isinstance(ending, ErrSandboxExecutionFailed)
    assert ending.retry_safety == "started"


def sentries(cgroups: CgroupHost) -> list[int]:
    mounts = {*cgroups._hierarchies.values(), cgroups._unified} - {None}
    parents = [mount / cgroups.parent.lstrip("/") for mount in mounts if mount is not None]
    pids = {
        int(pid)
        for parent in parents
        for procs in parent.glob("*/**/cgroup.procs")
        for pid in procs.read_text().split()
    }
    return [pid for pid in pids if b"runsc-sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes()]


# A full disk


@contextmanager
def small_disk(directory: Path, options: str) -> Iterator[Path]:
    """Mount a file system that is soon full, and unmount it again."""
    disk = directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    try:
        for name in ("r", "b"):
            (disk / name).mkdir()
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()


@pytest.mark.parametrize(
    "options",
    [
        *(f"size={size}k,nr_inodes=1000" for size in (8, 12, 16, 20, 24, 32, 48)),
        *(f"size=1m,nr_inodes={inodes}" for inodes in (4, 5, 6, 7, 8, 9, 10, 12)),
    ],
)
async def test_a_disk_or_its_inodes_may_be_full_at_any_moment(
    runsc: Runsc, cgroups: CgroupHost, directory: Path, rootfs: Path, options: str
) -> None:
    with small_disk(directory, options) as disk:
        full = Runsc(binary=runsc.binary, root=disk / "r", platform=runsc.platform)
        sandboxes = ColdStart(
            runsc=full,
            cgroups=cgroups,
            runs=disk / "b",
            holdings=Holdings("0a1b2c3d"),
            start_timeout_s=20,
        )

        ending = await ending_of(sandboxes, rootfs)

        assert_told_truly(ending)
        assert [path for path in disk.rglob("*") if path.parent != disk] == []


async def test_a_full_disk_is_a_shortage_and_an_emptied_one_is_not(directory: Path) -> None:
    with small_disk(directory, "size=64k,nr_inodes=100") as disk:
        sampler = HostSampler(disk, runsc_is_same=lambda: True, sandboxes_start=lambda: True)
        before = sampler.sample()
        (disk / "file").write_bytes(bytes(64 * 1024))
        full = sampler.sample()
        (disk / "file").unlink()

        assert (before.disk_bytes, full.disk_bytes) == (64 * 1024, 0)
        assert before.inodes is not None
        assert full.inodes == before.inodes - 1
        assert sampler.sample() == before or sampler.sample().disk_bytes == 64 * 1024


# No file descriptors


@contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """Leave this process so many file descriptors, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest number that is free, and as many above it: the limit is on numbers.
    used = {int(link.name) for link in Path("/proc/self/fd").iterdir()}
    number = 0
    while left:
        left -= number not in used
        number += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("left", range(1, 22))
async def test_file_descriptors_may_be_used_up_at_any_moment(
    cold: ColdStart, rootfs: Path, left: int
) -> None:
    await anyio.to_thread.run_sync(lambda: None)  # the thread pool is there already

    with few_descriptors(left):
        ending = await ending_of(cold, rootfs, Job(argv=("echo", "hello"), stdin=b"x"))

    assert_told_truly(ending)


# A runsc that is deleted or replaced


@pytest.fixture
def own_runsc(runsc: Runsc, directory: Path) -> Iterator[Runsc]:
    """A copy of runsc that a test may do anything to."""
    binary = directory / "runsc-copy"
    shutil.copy(runsc.binary, binary)
    own = Runsc(binary=binary, root=runsc.root, platform=runsc.platform)
    own.pin()
    yield own
    binary.unlink(missing_ok=True)


def replaced(binary: Path) -> None:
    """As a package manager does it: another file under the same name."""
    new = binary.with_suffix(".new")
    shutil.copy(binary, new)
    new.rename(binary)


def overwritten(binary: Path) -> None:
    with binary.open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize("fate", [Path.unlink, replaced, overwritten, lambda path: path.chmod(0)])
async def test_no_sandbox_is_started_by_a_runsc_whose_version_nobody_knows(
    own_runsc: Runsc, cgroups: CgroupHost, directory: Path, rootfs: Path, fate: object
) -> None:
    assert callable(fate)
    sandboxes = ColdStart(
        runsc=own_runsc,
        cgroups=cgroups,
        runs=directory / "b",
        holdings=Holdings("0a1b2c3d"),
        start_timeout_s=20,
    )
    assert await ending_of(sandboxes, rootfs) == DONE
    assert own_runsc.is_same()

    fate(own_runsc.binary)
    ending = await ending_of(sandboxes, rootfs)

    assert isinstance(ending, ErrGVisorNotAvailable)
    assert (ending.retry_safety, ending.retryable) == ("not_started", True)
    assert not own_runsc.is_same()


async def test_the_very_same_runsc_is_used_again_once_it_is_back(
    own_runsc: Runsc, cgroups: CgroupHost, directory: Path, rootfs: Path
) -> None:
    sandboxes = ColdStart(
        runsc=own_runsc,
        cgroups=cgroups,
        runs=directory / "b",
        holdings=Holdings("0a1b2c3d"),
        start_timeout_s=20,
    )
    away = own_runsc.binary.with_suffix(".away")
    own_runsc.binary.rename(away)
    assert isinstance(await ending_of(sandboxes, rootfs), ErrGVisorNotAvailable)

    away.rename(own_runsc.binary)

    assert await ending_of(sandboxes, rootfs) == DONE


@pytest.mark.parametrize("fate", [Path.unlink, replaced])
async def test_a_program_whose_runsc_is_deleted_or_replaced_meanwhile_is_killed_at_its_limit(
    own_runsc: Runsc, cgroups: CgroupHost, directory: Path, rootfs: Path, fate: object
) -> None:
    assert callable(fate)
    sandboxes = ColdStart(
        runsc=own_runsc,
        cgroups=cgroups,
        runs=directory / "b",
        holdings=Holdings("0a1b2c3d"),
        start_timeout_s=20,
    )
    reports: list[Report] = []

    async def run() -> None:
        limits = EffectiveLimits(wall_s=2)
        reports.append(await sandboxes.run(SLEEPER, limits, rootfs, Stop()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(30):
            while not any(
                own_runsc.state(file.name.partition("_sandbox:")[0]).status() == "running"
                for file in own_runsc.root.glob("*.state")
            ):
                await anyio.sleep(0.005)
        fate(own_runsc.binary)

    (report,) = reports
    assert report.ending == Ending(outcome=Outcome.WALL_TIMEOUT, signal=9)
    assert report.stdout.data == b"begun\n"
    assert report.termination is not None
    assert report.termination.verified_dead
    assert report.leftovers == ()
