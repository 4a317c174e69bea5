"""What killed workers, runscs and sentries leave on a real host, and that it goes."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest
from support.host_traces import mentions, mounts_of, parents_of, processes_with
from support.other_worker import BUSY, SECRET, other_worker

from corral import EffectiveLimits
from corral_worker.reaper.claim import Claim, Owner
from corral_worker.reaper.reaper import Reaper
from corral_worker.reaper.sweep import Deadline, Sweep, Sweeper
from corral_worker.reaper.trace import NETWORK_NAMESPACES, Counts, names_in
from corral_worker.sandbox.cgroup import remove_below
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

LIMITS = EffectiveLimits(wall_s=100)


def remains(host: CgroupHost, worker: str) -> list[str]:
    """Return all cgroups, in any hierarchy, files, processes and mounts of a worker."""
    return [
        *(str(path) for top in parents_of(host) for path in top.glob(f"corral-{worker}*")),
        *mentions(f"w-{worker}"),
        *mentions(f"corral-{worker}"),
        *(line for line in Path("/proc/mounts").read_text().splitlines() if worker in line),
    ]


async def swept(state_dir: Path, host: CgroupHost) -> Sweep:
    return await Reaper(state_dir=state_dir, cgroups=host).reap()


async def test_all_that_a_killed_worker_left_is_removed_and_a_living_one_runs_on(
    state_dir: Path, parent: CgroupHost, runsc: Runsc, rootfs: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="corral-") as name:
        elsewhere = Path(name)
        async with (
            other_worker(elsewhere, parent, runsc, rootfs) as neighbour,
            other_worker(state_dir, parent, runsc, rootfs) as lives,
            other_worker(state_dir, parent, runsc, rootfs, count=3) as dies,
        ):
            of_the_living = [
                remains(parent, neighbour.worker),
                remains(parent, lives.worker),
            ]
            await dies.killed()
            assert len(list((dies.directory / "b").iterdir())) == 3
            assert SECRET in "".join(
                file.read_text() for file in dies.directory.glob("b/*/config.json")
            )

            first = await swept(state_dir, parent)
            second = await swept(state_dir, parent)

            assert (first.left, first.complete) == ((), True)
            assert (first.dead.cgroup, first.dead.bundle, first.dead.directory) == (3, 3, 1)
            assert first.dead.state_file >= 3
            assert second == Sweep()
            assert remains(parent, dies.worker) == []
            assert not dies.directory.exists()
            assert of_the_living == [
                remains(parent, neighbour.worker),
                remains(parent, lives.worker),
            ]
            assert (len(neighbour.running()), len(lives.running())) == (1, 1)
            await neighbour.killed()
            await lives.killed()
            # The neighbour's directory is not seen from here, its cgroups are.
            assert (await swept(state_dir, parent)).dead.cgroup == 2
            assert (await swept(elsewhere, parent)).dead.directory == 1
    assert remains(parent, neighbour.worker) == remains(parent, lives.worker) == []


async def test_a_worker_in_other_namespaces_is_known_to_live_and_to_be_dead(
    state_dir: Path, parent: CgroupHost, runsc: Runsc, rootfs: Path
) -> None:
    # Its process has a number there that some other process has here.
    apart = ("unshare", "--pid", "--fork", "--mount-proc", "--ipc", "--uts", "--kill-child")
    async with other_worker(state_dir, parent, runsc, rootfs, before=apart) as other:
        owner = msgspec.json.decode((other.directory / "owner").read_bytes(), type=Owner)
        assert owner.process.pid < 100
        before = remains(parent, other.worker)

        assert await swept(state_dir, parent) == Sweep()
        assert remains(parent, other.worker) == before
        assert other.running() != []

        await other.killed()
        with anyio.fail_after(120):
            # The lock is there until the kernel is through with the whole namespace.
            while (await swept(state_dir, parent)).dead.directory == 0:
                await anyio.sleep(0.05)
    assert remains(parent, other.worker) == []


@pytest.fixture
def dead(state_dir: Path, parent: CgroupHost) -> Claim:
    """A worker that has just died, and had no sandbox."""
    return died(Claim.make(state_dir, parent))


def died(claim: Claim) -> Claim:
    """Leave a claim as if its process had died before the last boot."""
    file = claim.directory / "owner"
    owner = msgspec.json.decode(file.read_bytes(), type=Owner)
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(owner, boot_id="before")))
    for lock in (claim._lock, claim._beacon.lock):
        lock.close()
    return claim


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"])


def run(*argv: object, check: bool = True) -> None:
    subprocess.run([str(word) for word in argv], check=check, stderr=subprocess.PIPE)


async def test_cgroups_with_processes_are_emptied_and_removed_in_every_hierarchy(
    state_dir: Path, parent: CgroupHost, dead: Claim
) -> None:
    sandbox = f"corral-{dead.worker}-000001"
    with ExitStack() as stack:
        sleepers = [stack.enter_context(sleeping()) for _ in range(2)]
        for sleeper in sleepers:
            stack.callback(sleeper.kill)
        for mount in mounts_of(parent):
            group = mount / parent.parent.lstrip("/") / sandbox / "inner"
            group.mkdir(parents=True)
            if (group / "cpuset.cpus").exists():
                continue  # it takes processes only once it has been given processors
            (group.parent / "cgroup.procs").write_text(str(sleepers[0].pid))
            (group / "cgroup.procs").write_text(str(sleepers[1].pid))

        found = await swept(state_dir, parent)

        assert [sleeper.wait() for sleeper in sleepers] == [-9, -9]
    assert found.dead == Counts(process=2, cgroup=1, directory=1)
    assert remains(parent, dead.worker) == []


@pytest.fixture
def unified() -> Iterator[CgroupHost]:
    """A host that has only cgroup version 2, as far as it is told; no controllers are needed."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines(keepends=True)
    mountinfo = "".join(line for line in lines if " - cgroup2 " in line)
    if not mountinfo:
        pytest.skip("no cgroup version 2 is mounted here")
    parent = f"/corral-test-{os.getpid()}-{secrets.token_hex(4)}"
    host = CgroupHost(parent, mountinfo=mountinfo, membership="0::/\n")
    yield host
    for directory in parents_of(host):
        remove_below(directory)


async def test_a_version_2_cgroup_is_killed_as_a_whole_and_removed(
    state_dir: Path, unified: CgroupHost
) -> None:
    with ExitStack() as stack:
        lives = Claim.make(state_dir / "other", unified)
        stack.callback(lives.release)
        dead = died(Claim.make(state_dir, unified))
        theirs, others = stack.enter_context(sleeping()), stack.enter_context(sleeping())
        stack.callback(theirs.kill)
        stack.callback(others.kill)
        (mount,) = mounts_of(unified)
        for claim, process in ((dead, theirs), (lives, others)):
            name = f"corral-{claim.worker}-000001"
            group = mount / unified.parent.lstrip("/") / name / "sandbox"
            group.mkdir(parents=True)
            (group / "cgroup.procs").write_text(str(process.pid))

        found = await swept(state_dir, unified)

        assert found == Sweep(dead=Counts(process=1, cgroup=1, directory=1))
        assert theirs.wait() == -9
        assert others.poll() is None
        assert remains(unified, dead.worker) == []
        others.kill()
        others.wait()
        remove_below(mount / unified.parent.lstrip("/") / f"corral-{lives.worker}-000001")


async def test_what_is_mounted_in_a_dead_workers_directory_is_unmounted_not_emptied(
    state_dir: Path, parent: CgroupHost, dead: Claim
) -> None:
    precious = state_dir / "precious"
    precious.mkdir()
    (precious / "file").touch()
    below = dead.runs / f"corral-{dead.worker}-000001" / "with a blank"
    below.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "corral-test", below)
    (below / "inner").mkdir()
    run("mount", "--bind", precious, below / "inner")

    with (below / "file").open("w"):
        busy = await swept(state_dir, parent)
    free = await swept(state_dir, parent)

    # First the upper one; the lower one is in use, and all that it lies in stays.
    assert (busy.dead.mount, busy.dead.bundle, busy.dead.directory) == (1, 0, 0)
    assert any("busy" in doubt.reason for doubt in busy.left)
    assert free.dead == Counts(mount=1, bundle=1, directory=1)
    assert not dead.directory.exists()
    assert (precious / "file").exists()
    assert remains(parent, dead.worker) == []


async def test_network_namespaces_that_are_named_after_a_dead_worker_go(
    state_dir: Path, parent: CgroupHost, dead: Claim
) -> None:
    names = state_dir / "netns"
    names.mkdir()
    theirs, others = names / f"corral-{dead.worker}-000001", names / "corral-other"
    for name in (theirs, others):
        name.touch()
        run("unshare", f"--net={name}", "true")
    sweeper = Sweeper(state_dir=state_dir, cgroups=parent, own=None, network_namespaces=names)
    try:
        found = await anyio.to_thread.run_sync(sweeper.sweep, frozenset(), Deadline(60))

        assert found.dead == Counts(network_namespace=1, directory=1)
        assert not theirs.exists()
        assert others.exists()
    finally:
        for name in (theirs, others):
            run("umount", name, check=False)


async def test_a_sandbox_makes_no_mount_and_no_named_namespace_on_the_host(
    state_dir: Path, parent: CgroupHost, runsc: Runsc, rootfs: Path
) -> None:
    async with other_worker(state_dir, parent, runsc, rootfs) as other:
        mounted = mountinfo()
        assert other.running() != []
        await other.killed()
    mounted += mountinfo()

    assert other.worker not in mounted
    assert str(state_dir) not in mounted
    assert [name for name in names_in(NETWORK_NAMESPACES) if other.worker in name] == []
    await swept(state_dir, parent)


def mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()


# --- the parts of one sandbox, killed one by one ------------------------------------------------


@pytest.mark.parametrize("victim", ["runsc", "sentry", "both"])
async def test_nothing_is_left_of_a_sandbox_whose_processes_are_killed(
    cold: ColdStart,
    runsc: Runsc,
    cgroups: CgroupHost,
    directory: Path,
    holdings: Holdings,
    rootfs: Path,
    victim: str,
) -> None:
    reports: list[Report] = []

    async def run_it() -> None:
        reports.append(await cold.run(BUSY, LIMITS, rootfs, Stop()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_it)
        with anyio.fail_after(120):
            while not (file := next(runsc.root.glob("*.state"), None)) or (
                b'"status":"running"' not in file.read_bytes()
            ):
                await anyio.sleep(0.01)
        sandbox = file.name.partition("_sandbox:")[0]
        sentry = json.loads(file.read_bytes())["sandbox"]["pid"]
        frontends = [
            process for process in processes_with(f"run --bundle {directory}") if process != sentry
        ]
        assert holdings.now() == {sandbox}
        for pid in {"runsc": frontends, "sentry": [sentry], "both": [*frontends, sentry]}[victim]:
            os.kill(pid, signal.SIGKILL)

    (report,) = reports
    assert report.leftovers == ()
    assert cgroups.names() == set()
    assert list(runsc.root.iterdir()) == list((directory / "b").iterdir()) == []
    assert holdings.now() == set()
