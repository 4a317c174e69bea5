"""What a real sandbox is to its host: processes without rights, which go with their worker."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from support.host_traces import mentions, running_in

from corral import EffectiveLimits, ErrSandboxExecutionFailed, Job, Outcome
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.cgroup_processes import wait_until_empty
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

MIB = 1024**2
LIMITS = EffectiveLimits(wall_s=50)
# Two processes in the sandbox, one of which holds memory.
BUSY_BYTES = 20_000_000
BUSY = Job(
    argv=("/bin/sh", "-c", f"sleep 1000 & head -c {BUSY_BYTES} /dev/zero >/tmp/x; echo; wait")
)


@asynccontextmanager
async def running(
    sandboxes: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path
) -> AsyncIterator[str]:
    """Run a sandbox as long as the block, and give its id."""
    stop = Stop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sandboxes.run, BUSY, LIMITS, rootfs, stop)
        with anyio.fail_after(120):
            while not (names := running_in(runsc.root)):
                await anyio.sleep(0.01)
            # The program is to have started its own.
            while cgroups.sandbox(names[0]).counters().memory_bytes < BUSY_BYTES:
                await anyio.sleep(0.01)
        try:
            yield names[0]
        finally:
            stop.request("cancelled")


def sentry_of(runsc: Runsc, sandbox: str) -> int:
    """Return the pid that runsc notes of the sandbox's process."""
    state = json.loads((runsc.root / f"{sandbox}_sandbox:{sandbox}.state").read_bytes())
    pid: int = state["sandbox"]["pid"]
    return pid


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_no_process_of_a_sandbox_is_root_on_the_host_or_has_a_capability(
    sandboxes: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path
) -> None:
    async with running(sandboxes, runsc, cgroups, rootfs) as sandbox:
        pids = cgroups.sandbox(sandbox).processes()
        assert sentry_of(runsc, sandbox) in pids
        statuses = [status_of(pid) for pid in pids]

    for status in statuses:
        assert "0" not in status["Uid"].split() + status["Gid"].split()
        assert "0" not in status["Groups"].split()
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"


async def test_the_sentry_has_left_the_hosts_file_system_and_namespaces(
    sandboxes: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path
) -> None:
    async with running(sandboxes, runsc, cgroups, rootfs) as sandbox:
        sentry = sentry_of(runsc, sandbox)
        sees = {path.name for path in root_of(sentry).iterdir()}
        shared = {name for name in NAMESPACES if namespace(sentry, name) == namespace("self", name)}

    assert sees <= {"etc", "proc"}
    assert shared == set()


# Not the pids': gVisor's systrap works by them.
NAMESPACES = ("ipc", "mnt", "net", "user", "uts")


def root_of(process: int) -> Path:
    return Path(f"/proc/{process}/root")


def namespace(process: int | str, name: str) -> Path:
    return Path(f"/proc/{process}/ns/{name}").readlink()


async def test_a_host_short_of_memory_kills_a_sandbox_before_anything_else(
    sandboxes: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path
) -> None:
    async with running(sandboxes, runsc, cgroups, rootfs) as sandbox:
        scores = list(map(oom_score_adj, cgroups.sandbox(sandbox).processes()))

    assert len(scores) > 1
    assert set(scores) == {500}
    assert oom_score_adj("self") < 500


async def test_no_thread_of_a_sandbox_takes_the_processor_from_the_one_that_wakes_it(
    sandboxes: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path
) -> None:
    async with running(sandboxes, runsc, cgroups, rootfs) as sandbox:
        policies = list(policies_of_threads(cgroups.sandbox(sandbox).processes()))

    assert len(policies) > 1
    assert set(policies) == {os.SCHED_BATCH}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def policies_of_threads(processes: Iterable[int]) -> Iterator[int]:
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            with suppress(ProcessLookupError):  # one that has just ended
                yield os.sched_getscheduler(int(thread.name))


def oom_score_adj(process: int | str) -> int:
    return int(Path(f"/proc/{process}/oom_score_adj").read_text())


RUNS_A_SANDBOX = """
import sys
from pathlib import Path

import anyio

from corral import EffectiveLimits, Job
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.runsc import Runsc, find
from corral_worker.sandbox.stop import Stop

directory, parent, rootfs, binary = sys.argv[1:]
sandboxes = ColdStart(
    runsc=Runsc(binary=Path(binary), root=Path(directory) / "r", platform="systrap"),
    cgroups=CgroupHost.of_this_host(parent),
    runs=Path(directory) / "b",
    holdings=Holdings("01234567"),
    start_timeout_s=30,
)
job = Job(argv=("/bin/sh", "-c", "trap '' TERM INT HUP; setsid sleep 1000 & sleep 1000"))
anyio.run(sandboxes.run, job, EffectiveLimits(wall_s=500), Path(rootfs), Stop())
"""


@pytest.fixture
def own_directory() -> Iterator[Path]:
    """A directory that a worker which is killed leaves behind."""
    made = Path(tempfile.mkdtemp(prefix="corral-"))
    (made / "r").mkdir(mode=0o700)
    (made / "b").mkdir(mode=0o700)
    yield made
    shutil.rmtree(made)


# From before the first system call of runsc to well after the program's start.
@pytest.mark.parametrize("delay_s", [None, 0.0, 0.02, 0.05, 0.1, 0.2])
async def test_a_sandbox_does_not_outlive_a_worker_that_is_killed(
    own_directory: Path, parent: CgroupHost, runsc: Runsc, rootfs: Path, delay_s: float | None
) -> None:
    arguments = [own_directory, parent.parent, rootfs, runsc.binary]
    worker = await anyio.open_process(
        [sys.executable, "-c", RUNS_A_SANDBOX, *map(str, arguments)], stderr=sys.stderr
    )
    with anyio.fail_after(120):
        if delay_s is None:
            while not running_in(own_directory / "r"):
                await anyio.sleep(0.005)
        else:
            while not bundles(own_directory):
                await anyio.sleep(0.001)
            await anyio.sleep(delay_s)
    (bundle,) = bundles(own_directory)
    sandbox = parent.sandbox(bundle.name)

    worker.kill()
    await worker.wait()

    assert await anyio.to_thread.run_sync(wait_until_empty, sandbox, 20)
    with anyio.fail_after(120):
        while mentions(str(own_directory)):
            await anyio.sleep(0.01)
    # None that was on its way into the cgroup comes after all.
    await anyio.sleep(0.3)
    assert sandbox.processes() == set()
    assert mentions(str(own_directory)) == []
    await worker.aclose()


def bundles(directory: Path) -> list[Path]:
    return list((directory / "b").iterdir())


@pytest.fixture
def tight(parent: CgroupHost) -> CgroupHost:
    """A parent that has less memory than the sandboxes below it may take."""
    memory = parent._hierarchies.get("memory") or parent._unified
    assert memory is not None
    directory = memory / parent.parent.lstrip("/")
    directory.mkdir(exist_ok=True)
    limit = "memory.max" if parent.version == 2 else "memory.limit_in_bytes"
    (directory / limit).write_text(str(80 * MIB))
    return parent


TAKES_MEMORY = "print('begun', flush=True)\nx = b'x' * (150 << 20)\nprint('enough')"


async def test_a_program_below_its_own_limit_is_not_blamed_for_the_hosts_want_of_memory(
    runsc: Runsc, tight: CgroupHost, directory: Path, python_rootfs: Path
) -> None:
    report = await with_python(runsc, tight, directory, python_rootfs, 512 * MIB)

    assert isinstance(report.ending, ErrSandboxExecutionFailed)
    assert "the host ran out of memory" in report.ending.message
    assert report.ending.retry_safety == "started"
    assert report.counters.oom_kills > 0
    assert report.counters.peak_memory_bytes < 100 * MIB
    assert report.stdout.data == b"begun\n"


async def test_a_program_that_meets_its_own_limit_is_blamed_whatever_is_above_it(
    runsc: Runsc, tight: CgroupHost, directory: Path, python_rootfs: Path
) -> None:
    report = await with_python(runsc, tight, directory, python_rootfs, 48 * MIB)

    assert isinstance(report.ending, Ending)
    assert report.ending.outcome is Outcome.OUT_OF_MEMORY


async def with_python(
    runsc: Runsc, cgroups: CgroupHost, directory: Path, rootfs: Path, memory_bytes: int
) -> Report:
    sandboxes = ColdStart(
        runsc=runsc,
        cgroups=cgroups,
        runs=directory / "b",
        holdings=Holdings("89abcdef"),
        start_timeout_s=30,
    )
    limits = EffectiveLimits(wall_s=50, memory_bytes=memory_bytes)
    job = Job(argv=("python3", "-c", TAKES_MEMORY))
    return await sandboxes.run(job, limits, rootfs, Stop())
