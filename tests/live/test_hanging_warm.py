"""Whatever of a sandbox that waited hangs or dies, its job's end is told truly, in bounded time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs
from support.on_host import OnHost, running
from support.waiting import READY_WITHIN_S, Prepare, ready

from corral import (
    EffectiveLimits,
    ErrSandboxCreationFailed,
    ErrSandboxExecutionFailed,
    ErrWorkerLost,
    Job,
    Outcome,
)
from corral.result import KillStep
from corral_worker.admission.gate import Gate
from corral_worker.pool import prepared as prepared_module
from corral_worker.pool.pool import Budget, Pool
from corral_worker.pool.prepared import NotPreparedError, Prepared, Shape
from corral_worker.process.reaping import reaping
from corral_worker.sandbox.bundle import SandboxSpec
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.commands import RunscContainers
from corral_worker.sandbox.containers import Containers, SandboxGoneError, Streams
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending, KillCause
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop
from corral_worker.sandbox.warm import JOB, WarmStart

pytestmark = pytest.mark.live

LIMITS = EffectiveLimits(wall_s=100)
SLEEPER = Job(argv=("sh", "-c", "trap '' TERM; sleep 1000"))
USUAL: tuple[KillStep, ...] = ("runsc_kill", "cgroup_kill")
WITH_PROCESS_KILL: tuple[KillStep, ...] = (
    "runsc_kill",
    "cgroup_kill",
    "process_kill",
    "runsc_delete",
)
HARM = [
    pytest.param(OnHost.stop_sentry, USUAL, id="sentry"),
    pytest.param(OnHost.stop_runsc, WITH_PROCESS_KILL, id="runsc"),
    pytest.param(OnHost.stop_all, WITH_PROCESS_KILL, id="both"),
]
DEAD_WITHIN_S = 1.0
"""Far from what it takes, and far below what a runsc that hangs is given."""
GONE_WITHIN_S = 10.0
"""All deadlines of giving one up, and of its removal."""

Asked = Mapping[str, anyio.Event]
Harm = Callable[[OnHost], None]


@pytest.fixture
async def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Tells when the sentry is about to be asked to start the job, and then to wait for its end."""
    events = {"start": anyio.Event(), "wait": anyio.Event()}
    for ways in (ControlSocket, RunscContainers):
        _notify(monkeypatch, ways, events)
    return events


def _notify(
    monkeypatch: pytest.MonkeyPatch, ways: type[Containers], events: Mapping[str, anyio.Event]
) -> None:
    start, wait = ways.start, ways.wait

    async def starting(
        self: Containers, container: str, spec: SandboxSpec, *, streams: Streams, within_s: float
    ) -> None:
        if container == JOB:
            events["start"].set()
        await start(self, container, spec, streams=streams, within_s=within_s)

    async def waiting(self: Containers, container: str, *, within_s: float) -> int:
        if container == JOB:
            events["wait"].set()
        return await wait(self, container, within_s=within_s)

    monkeypatch.setattr(ways, "start", starting)
    monkeypatch.setattr(ways, "wait", waiting)


@asynccontextmanager
async def taken(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost
) -> AsyncIterator[tuple[WarmStart, OnHost]]:
    """Yield what starts a job in a sandbox that waits, and that sandbox."""
    async with reaping(), ready(prepare, LIMITS) as prepared, prepared.taken() as start:
        yield start, await running(runsc, cgroups)


async def run(
    start: WarmStart,
    rootfs: Path,
    stop: Stop,
    *,
    meanwhile: Callable[[], Awaitable[None]],
    job: Job = SLEEPER,
    limits: EffectiveLimits = LIMITS,
) -> Report:
    """Run a job to its end, do something meanwhile, and return the report."""
    reports: list[Report] = []

    async def run() -> None:
        reports.append(await start.run(job, limits, rootfs, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await meanwhile()
    (report,) = reports
    assert report.start == "warm"
    assert report.leftovers == ()
    return report


def assert_soon_dead(report: Report, steps: tuple[KillStep, ...], slowness: float) -> None:
    assert report.termination is not None
    assert report.termination.verified_dead
    # On a slow machine it has to clean up, too, behind a runsc that has not come to it.
    assert report.termination.steps[: len(steps)] == steps
    assert report.termination.latency_s < DEAD_WITHIN_S * slowness


# While its job runs


@pytest.mark.parametrize(("harm", "steps"), HARM)
async def test_a_job_is_cancelled_whatever_of_its_sandbox_is_stopped(
    prepare: Prepare,
    runsc: Runsc,
    cgroups: CgroupHost,
    rootfs: Path,
    asked: Asked,
    slowness: float,
    harm: Harm,
    steps: tuple[KillStep, ...],
) -> None:
    stop = Stop()

    async with taken(prepare, runsc, cgroups) as (start, sandbox):

        async def cancel() -> None:
            await asked["wait"].wait()
            harm(sandbox)
            stop.request("cancelled")

        report = await run(start, rootfs, stop, meanwhile=cancel)

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert_soon_dead(report, steps, slowness)


@pytest.mark.parametrize(("harm", "steps"), HARM)
async def test_a_job_is_killed_at_its_wall_limit_whatever_of_its_sandbox_is_stopped(
    prepare: Prepare,
    runsc: Runsc,
    cgroups: CgroupHost,
    rootfs: Path,
    asked: Asked,
    slowness: float,
    harm: Harm,
    steps: tuple[KillStep, ...],
) -> None:
    limits = EffectiveLimits(wall_s=1)

    async with taken(prepare, runsc, cgroups) as (start, sandbox):

        async def wait() -> None:
            await asked["wait"].wait()
            harm(sandbox)

        report = await run(start, rootfs, Stop(), meanwhile=wait, limits=limits)

    assert report.ending == Ending(outcome=Outcome.WALL_TIMEOUT, signal=9)
    assert_soon_dead(report, steps, slowness)


async def test_a_program_ends_by_itself_though_its_runsc_is_stopped(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, rootfs: Path
) -> None:
    async with taken(prepare, runsc, cgroups) as (start, sandbox):
        sandbox.stop_runsc()
        report = await run(
            start, rootfs, Stop(), meanwhile=anyio.lowlevel.checkpoint, job=Job(argv=("true",))
        )

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)
    assert report.termination is None


# While its job is being started


@pytest.mark.parametrize("cause", ["cancelled", "shutdown"])
async def test_a_start_that_is_never_answered_can_be_given_up(
    prepare: Prepare,
    runsc: Runsc,
    cgroups: CgroupHost,
    rootfs: Path,
    asked: Asked,
    slowness: float,
    cause: KillCause,
) -> None:
    stop = Stop()

    async with taken(prepare, runsc, cgroups) as (start, sandbox):
        sandbox.stop_sentry()

        async def give_up() -> None:
            await asked["start"].wait()
            await anyio.wait_all_tasks_blocked()
            stop.request(cause)

        report = await run(start, rootfs, stop, meanwhile=give_up)

    if cause == "cancelled":
        assert report.ending == Ending(outcome=Outcome.CANCELLED)
        assert_soon_dead(report, USUAL, slowness)
    else:
        assert isinstance(report.ending, ErrWorkerLost)
        assert report.ending.retry_safety == "unknown"


async def test_a_start_that_is_not_answered_within_its_budget_is_a_fault(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, rootfs: Path
) -> None:
    async with taken(prepare, runsc, cgroups) as (start, sandbox):
        start._start_timeout_s = 0.3
        sandbox.stop_sentry()
        report = await run(start, rootfs, Stop(), meanwhile=anyio.lowlevel.checkpoint)

    assert isinstance(report.ending, ErrSandboxCreationFailed)
    assert "budget" in report.ending.message
    assert report.ending.retry_safety == "unknown"


@pytest.mark.parametrize("way", ["control_socket"], indirect=True)
async def test_a_sentry_that_dies_while_it_is_asked_to_start_may_have_started(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, asked: Asked
) -> None:
    async with taken(prepare, runsc, cgroups) as (start, sandbox):
        sandbox.stop_sentry()

        async def kill() -> None:
            await asked["start"].wait()
            await anyio.wait_all_tasks_blocked()
            await sandbox.kill_sentry()

        report = await run(start, rootfs, Stop(), meanwhile=kill)

    assert isinstance(report.ending, ErrSandboxCreationFailed)
    assert report.ending.retry_safety == "unknown"


@pytest.mark.parametrize("way", ["command_line"], indirect=True)
async def test_a_sentry_that_dies_before_runsc_asks_it_to_start_has_not_started(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, asked: Asked
) -> None:
    async with taken(prepare, runsc, cgroups) as (start, sandbox):
        # It does not even answer that it knows of the container.
        sandbox.stop_sentry()

        async def kill() -> None:
            await asked["start"].wait()
            await anyio.wait_all_tasks_blocked()
            await sandbox.kill_sentry()

        with pytest.RaisesGroup(SandboxGoneError):
            await run(start, rootfs, Stop(), meanwhile=kill)


async def test_a_sentry_that_dies_while_its_job_runs_is_a_fault(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, asked: Asked
) -> None:
    async with taken(prepare, runsc, cgroups) as (start, sandbox):

        async def kill() -> None:
            await asked["wait"].wait()
            await sandbox.kill_sentry()

        report = await run(start, rootfs, Stop(), meanwhile=kill)

    assert isinstance(report.ending, ErrSandboxExecutionFailed)
    assert report.ending.retry_safety == "started"


# Before its job came


async def test_a_job_starts_cold_if_its_sandbox_is_killed_between_taking_and_starting(
    prepare: Prepare, runsc: Runsc, cold: ColdStart, cgroups: CgroupHost, rootfs: Path
) -> None:
    def fragile(shape: Shape) -> Prepared:
        prepared = prepare(shape)
        taken = prepared.taken

        @asynccontextmanager
        async def killed() -> AsyncIterator[WarmStart]:
            async with taken() as start:
                await (await running(runsc, cgroups)).kill_sentry()
                yield start

        prepared.taken = killed  # type: ignore[method-assign]
        return prepared

    budget = Budget(sandboxes=1, slots=100)
    async with (
        reaping(),
        Pool.open(
            cold=cold, prepare=fragile, runsc=runsc, budget=budget, gate=Gate(), expected=LIMITS
        ) as pool,
    ):
        with anyio.fail_after(READY_WITHIN_S):
            while not pool.waiting:
                await anyio.sleep(0.01)
        with capture_logs() as logs:
            report = await pool.run(Job(argv=("true",)), LIMITS, rootfs, Stop())

    assert report.start == "cold"
    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)
    assert "pool.sandbox_gone" in {entry["event"] for entry in logs}


@pytest.mark.parametrize("harm", [OnHost.stop_sentry, OnHost.stop_all])
async def test_a_sandbox_that_hangs_before_it_is_ready_is_given_up_and_removed(
    prepare: Prepare,
    runsc: Runsc,
    cgroups: CgroupHost,
    monkeypatch: pytest.MonkeyPatch,
    slowness: float,
    harm: Harm,
) -> None:
    began: list[float] = []

    def stopping(ways: type[Containers]) -> None:
        create = ways.create

        async def stop(self: Containers, container: str, *, within_s: float) -> None:
            harm(await running(runsc, cgroups))
            began.append(time.monotonic())
            await create(self, container, within_s=within_s)

        monkeypatch.setattr(ways, "create", stop)

    stopping(ControlSocket)
    stopping(RunscContainers)
    monkeypatch.setattr(prepared_module, "_CALL_WITHIN_S", 0.3)

    async with reaping():
        with pytest.raises(NotPreparedError, match="no answer within"):
            await prepare(Shape.of(LIMITS)).live(lambda: None)

    assert time.monotonic() - began[0] < GONE_WITHIN_S * slowness
