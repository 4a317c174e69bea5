"""Sandboxes that wait for their job: each serves one, and shows it nothing but its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs
from support.on_host import running
from support.waiting import LIMITS, READY_WITHIN_S, Prepare, ready, warm

from corral import EffectiveLimits, ErrWorkerLost, Job, Outcome
from corral.result import StartWay
from corral_worker.admission.gate import Gate
from corral_worker.pool.pool import Budget, Pool
from corral_worker.pool.prepared import Shape
from corral_worker.process.reaping import reaping
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.containers import SandboxGoneError
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending, KillCause
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

# What differs between any two boots is left out: times, free memory, and gVisor's own numbers of
# devices, mounts, namespaces and the host's descriptors.
PROBE = r"""
import os, re, resource, sys
NUMBERS = re.compile(r'ifd=\d+|host:\[\d+\]')
def show(*what):
    print(NUMBERS.sub('#', ' '.join(map(str, what))))
show(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), os.getresuid(), os.getresgid())
show(os.getgroups(), os.getcwd(), oct(os.umask(0)), os.uname(), sorted(os.environ.items()))
show([(fd, os.readlink('/proc/self/fd/' + fd)) for fd in '012'], len(os.listdir('/proc/self/fd')))
show([resource.getrlimit(kind) for kind in range(16)], os.nice(0), os.cpu_count())
show(sorted(os.sched_getaffinity(0)), sys.stdin.isatty(), sys.stdin.read())
for place in ('/', '/proc', '/proc/self/ns', '/proc/self/task', '/sys', '/sys/fs/cgroup', '/dev',
              '/dev/pts', '/dev/shm', '/tmp', '/var/tmp', '/workspace', '/home', '/proc/net'):
    found = os.stat(place)
    show(place, sorted(os.listdir(place)), oct(found.st_mode), found.st_uid, found.st_gid)
for file in ('/proc/mounts', '/proc/cpuinfo', '/proc/cmdline', '/proc/version', '/proc/cgroups',
             '/proc/self/cgroup', '/proc/self/limits', '/proc/self/oom_score_adj',
             '/proc/net/dev', '/proc/net/unix', '/proc/net/tcp', '/proc/sys/kernel/hostname'):
    try:
        show(file, open(file).read())
    except OSError as error:
        show(file, error)
show(sorted(open('/proc/filesystems').read().split('\n')))
show([line for line in open('/proc/meminfo') if line.startswith(('MemTotal', 'Swap'))])
show([line for line in open('/proc/self/status') if not line.startswith(('Vm', 'Rss'))])
show([line.split(' ', 5)[3:] for line in open('/proc/self/mountinfo')])
"""


@asynccontextmanager
async def stopped(
    prepare: Prepare, job: Job, rootfs: Path, cause: KillCause, delay_s: float
) -> AsyncIterator[Report]:
    """Ask for a program's end so many seconds after its start was asked for."""
    stop = Stop()
    async with ready(prepare, LIMITS) as prepared, anyio.create_task_group() as tasks:

        async def ask() -> None:
            await anyio.sleep(delay_s)
            stop.request(cause)

        async with prepared.taken() as start:
            tasks.start_soon(ask)
            report = await start.run(job, LIMITS, rootfs, stop)
        yield report


async def test_a_program_sees_after_a_warm_start_what_it_sees_after_a_cold_one(
    prepare: Prepare, way: StartWay, cold: ColdStart, python_rootfs: Path
) -> None:
    limits = EffectiveLimits(
        wall_s=50, memory_bytes=300 * 2**20, cpus=1.5, disk_bytes=2**20, open_files=99, pids=17
    )
    job = Job(
        argv=("python3", "-c", PROBE),
        env={"COLOUR": "blue"},
        cwd="/tmp",
        stdin=b"in",
        user="1234:99",
    )

    expected = await cold.run(job, limits, python_rootfs, Stop())
    found = await warm(prepare, job, python_rootfs, limits=limits)

    assert expected.ending == Ending(outcome=Outcome.EXITED, exit_code=0), expected.stderr.data
    assert found.stdout.data.decode() == expected.stdout.data.decode()
    assert found.host_limits == expected.host_limits
    assert (found.ending, found.stderr.data) == (expected.ending, expected.stderr.data)
    assert (found.start, found.start_way) == ("warm", way)
    assert (expected.start, expected.start_way) == ("cold", "command_line")


async def test_one_that_waits_serves_any_image(
    prepare: Prepare, rootfs: Path, python_rootfs: Path
) -> None:
    hello = await warm(prepare, Job(argv=("echo", "hello")), rootfs)
    answer = await warm(prepare, Job(argv=("python3", "-c", "print(42)")), python_rootfs)

    assert (hello.stdout.data, answer.stdout.data) == (b"hello\n", b"42\n")


async def test_what_was_used_before_the_job_came_is_not_the_jobs(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, slowness: float
) -> None:
    script = "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done"

    async with ready(prepare, LIMITS) as prepared, prepared.taken() as start:
        # To boot takes many times what this program does.
        booting_s = (await running(runsc, cgroups)).cgroup.counters().cpu_s
        limits = replace(LIMITS, wall_s=50 * slowness, cpu_time_s=booting_s)
        report = await start.run(Job(argv=("sh", "-c", "exit 0")), limits, rootfs, Stop())
    busy = await warm(prepare, Job(argv=("sh", "-c", script)), rootfs)

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)
    assert 0 < report.counters.cpu_s < booting_s
    assert 0 < busy.counters.cpu_s < 5 * slowness
    assert busy.counters.oom_kills == 0


async def test_limits_are_the_jobs_own_and_read_back(prepare: Prepare, rootfs: Path) -> None:
    limits = EffectiveLimits(wall_s=50, pids=9, memory_bytes=100 * 2**20, cpus=0.5)

    report = await warm(prepare, Job(argv=("true",)), rootfs, limits=limits)

    assert report.host_limits.memory_bytes == limits.memory_bytes
    assert report.host_limits.cpus == pytest.approx(limits.cpus)
    assert report.host_limits.tasks == 2 * limits.pids + 32


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.3])
async def test_a_program_can_be_cancelled_at_any_moment(
    prepare: Prepare, rootfs: Path, delay_s: float
) -> None:
    job = Job(argv=("sh", "-c", "trap '' TERM INT; echo begun; while :; do sleep 1; done"))

    async with stopped(prepare, job, rootfs, "cancelled", delay_s) as report:
        assert isinstance(report.ending, Ending)
        assert report.ending.outcome == Outcome.CANCELLED
        assert report.termination is not None
        assert report.termination.verified_dead
        assert report.leftovers == ()


@pytest.mark.parametrize("delay_s", [0, 0.002, 0.005, 0.02, 0.05, 0.3])
async def test_a_worker_that_stops_never_calls_safe_what_may_have_begun(
    prepare: Prepare, rootfs: Path, delay_s: float
) -> None:
    job = Job(argv=("sh", "-c", "echo begun; sleep 1000"))

    async with stopped(prepare, job, rootfs, "shutdown", delay_s) as report:
        assert isinstance(report.ending, ErrWorkerLost)
        assert not (report.stdout.data and report.ending.retryable)


async def test_what_was_stopped_before_it_was_asked_for_has_not_begun(
    prepare: Prepare, rootfs: Path
) -> None:
    stop = Stop()
    stop.request("shutdown")

    async with ready(prepare, LIMITS) as prepared, prepared.taken() as start:
        report = await start.run(Job(argv=("echo", "begun")), LIMITS, rootfs, stop)

    assert isinstance(report.ending, ErrWorkerLost)
    assert report.ending.retry_safety == "not_started"
    assert report.leftovers == ()


@pytest.mark.parametrize("delay_s", [0, 0.002, 0.005, 0.01, 0.03, 0.05, 0.08, 0.3])
async def test_a_task_that_runs_one_can_be_cancelled_at_any_moment(
    prepare: Prepare, rootfs: Path, delay_s: float
) -> None:
    job = Job(argv=("sleep", "1000"))

    async with ready(prepare, LIMITS) as prepared, prepared.taken() as start:
        with anyio.move_on_after(delay_s) as scope:
            await start.run(job, LIMITS, rootfs, Stop())

    assert scope.cancelled_caught


async def test_one_that_died_while_it_waited_is_found_out_before_anything_is_started(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, rootfs: Path
) -> None:
    # Whoever has taken it learns of its end only by asking it.
    async with reaping(), ready(prepare, LIMITS) as prepared, prepared.taken() as start:
        await (await running(runsc, cgroups)).kill_sentry()
        with pytest.raises(SandboxGoneError):
            await start.run(Job(argv=("true",)), LIMITS, rootfs, Stop())


@asynccontextmanager
async def pool_of(
    sandboxes: int, prepare: Prepare, runsc: Runsc, cold: ColdStart, gate: Gate | None = None
) -> AsyncIterator[Pool]:
    async with Pool.open(
        cold=cold,
        prepare=prepare,
        runsc=runsc,
        budget=Budget(sandboxes=sandboxes, slots=100),
        gate=gate or Gate(),
        expected=LIMITS,
    ) as pool:
        yield pool


async def test_one_that_is_to_go_at_the_moment_it_is_taken_stays_until_its_job_has_ended(
    prepare: Prepare, rootfs: Path
) -> None:
    prepared = prepare(Shape.of(LIMITS))
    seen = anyio.Event()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prepared.live, seen.set)
        with anyio.fail_after(READY_WITHIN_S):
            await seen.wait()
        with anyio.CancelScope(shield=True):
            async with prepared.taken() as start:
                tasks.cancel_scope.cancel()
                report = await start.run(Job(argv=("true",)), LIMITS, rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)


async def full(pool: Pool, sandboxes: int) -> None:
    with anyio.fail_after(READY_WITHIN_S):
        while pool.waiting != sandboxes:
            await anyio.sleep(0.01)


async def test_a_pool_gives_each_job_a_sandbox_of_its_own_and_makes_another(
    prepare: Prepare, runsc: Runsc, cold: ColdStart, rootfs: Path
) -> None:
    mark = "ls /tmp /dev/shm /proc; test -e /tmp/mark && exit 99; echo x >/tmp/mark; sleep 1000 &"
    reports: list[Report] = []

    async with pool_of(1, prepare, runsc, cold) as pool:
        for _ in range(3):
            await full(pool, 1)
            reports.append(await pool.run(Job(argv=("sh", "-c", mark)), LIMITS, rootfs, Stop()))

    assert [report.start for report in reports] == ["warm"] * 3
    assert [report.ending for report in reports] == [
        Ending(outcome=Outcome.EXITED, exit_code=0)
    ] * 3
    assert len({report.stdout.data for report in reports}) == 1


@pytest.mark.parametrize("delay_s", [0, 0.005, 0.3])
async def test_a_pool_and_its_jobs_can_be_cancelled_at_the_same_time(
    prepare: Prepare, runsc: Runsc, cold: ColdStart, rootfs: Path, delay_s: float
) -> None:
    with capture_logs() as logs, anyio.CancelScope() as everything:
        async with pool_of(1, prepare, runsc, cold) as pool:
            await full(pool, 1)

            async def cancel() -> None:
                await anyio.sleep(delay_s)
                everything.cancel()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel)
                await pool.run(Job(argv=("sleep", "1000")), LIMITS, rootfs, Stop())

    assert everything.cancelled_caught
    assert logs == []
    assert list(runsc.root.iterdir()) == []


async def test_a_job_for_which_none_is_ready_gets_a_cold_start(
    prepare: Prepare, runsc: Runsc, cold: ColdStart, rootfs: Path
) -> None:
    unusual = EffectiveLimits(wall_s=50, memory_bytes=123 * 2**20)

    async with pool_of(1, prepare, runsc, cold) as pool:
        await full(pool, 1)
        report = await pool.run(Job(argv=("true",)), unusual, rootfs, Stop())

    assert report.start == "cold"
    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)


async def test_a_pool_gives_up_what_waits_when_memory_is_short_and_a_job_starts_cold(
    prepare: Prepare, runsc: Runsc, cold: ColdStart, rootfs: Path
) -> None:
    gate = Gate()

    async with pool_of(1, prepare, runsc, cold, gate) as pool:
        await full(pool, 1)
        gate.set(frozenset({"memory"}))
        with anyio.fail_after(READY_WITHIN_S):
            while list(runsc.root.iterdir()):
                await anyio.sleep(0.01)
        report = await pool.run(Job(argv=("true",)), LIMITS, rootfs, Stop())

    assert report.start == "cold"


async def test_jobs_at_the_same_time_never_share_one(
    prepare: Prepare, runsc: Runsc, cold: ColdStart, rootfs: Path
) -> None:
    script = "test -e /tmp/mark && exit 99; touch /tmp/mark; sleep 0.3"
    reports: list[Report] = []

    async with pool_of(2, prepare, runsc, cold) as pool:
        await full(pool, 1)

        async def one() -> None:
            reports.append(await pool.run(Job(argv=("sh", "-c", script)), LIMITS, rootfs, Stop()))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(one)

    assert {report.ending for report in reports} == {Ending(outcome=Outcome.EXITED, exit_code=0)}
    assert "warm" in [report.start for report in reports]
    assert len(reports) == 4
